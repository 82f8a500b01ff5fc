"""A few mild texts with labels, ratings and scores, and the file of a training on them."""

import json

import yaml

from tests.score.tiny_classifier import tiny_classifier

INSULTS = {"en": ["idiot", "stupid fool", "silly goose"], "de": ["Idiot", "Dummkopf", "blöde Gans"]}
KIND = {"en": ["friend", "good neighbour", "clever child"], "de": ["Freund", "guter Nachbar", "kluges Kind"]}
BEGINNINGS = {
    "en": ["You are a", "He called me a", "My brother is a", "What a", "She said that I was a"],
    "de": ["Du bist ein", "Er nannte mich ein", "Mein Bruder ist ein", "Was für ein", "Sie sagte, ich sei ein"],
}


def texts(language):
    """Yield texts, and whether each is an insult."""
    for begin in BEGINNINGS[language]:
        for number, (insult, kind) in enumerate(zip(INSULTS[language], KIND[language], strict=True)):
            for more in ("", " again", " and more")[: 3 - number % 2]:
                yield f"{begin} {insult}{more}", True
                yield f"{begin} {kind}{more}", False


def write_sources(folder):
    """Write a CSV of labels, one of scores and an RTP-LX file; return them as the sources of a training."""
    with (folder / "labels.csv").open("w") as stream:
        print("text,label,language", file=stream)
        for language in INSULTS:
            for text, is_insult in texts(language):
                print(f'"{text}",{int(is_insult)},{language}', file=stream)
    with (folder / "scores.csv").open("w") as stream:
        print("text,tox,ins", file=stream)
        for position, (text, is_insult) in enumerate(texts("en")):
            print(f'"Well. {text}",{80 if is_insult else 5 + position % 7},{90 if position % 3 else ""}', file=stream)
    with (folder / "RTP_LX_EN.json").open("w") as stream:
        for position, (text, is_insult) in enumerate(texts("en")):
            answers = {"Toxicity": [4, 5, 3] if is_insult else [1, 1, 2], "Insult": [3, 2, 3] if is_insult else [1] * 3}
            row = {"Prompt": f"So: {text}", "Index": position, "Locale": "EN", "AnnotationsRaw": answers}
            print(json.dumps(row), file=stream)
    return [
        {"kind": "labelled", "path": str(folder / "labels.csv"), "licence": "CC0"},
        {"kind": "ratings", "path": str(folder / "RTP_LX_EN.json"), "licence": "MIT", "weight": 2.0},
        {
            "kind": "scores", "path": str(folder / "scores.csv"), "licence": "none stated", "language": "en",
            "columns": {"toxicity": "tox", "insult": "ins"}, "scale": [0, 100], "held_out": True,
        },
    ]  # fmt: skip


def write_training(folder, **fields):
    """Write a tiny encoder, its sources and ``training.yaml``; return the file's fields."""
    values = {
        "name": "tiny",
        "output": "out",
        "model": {"id": tiny_classifier(folder / "encoder", labels=["LABEL_0", "LABEL_1"])},
        "attributes": ["toxicity", "insult"],
        "sources": write_sources(folder),
        "held_out_share": 0.3,
        "max_length": 32,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 24,
        "eval_steps": 6,
        "patience": None,
    }
    values |= fields
    (folder / "training.yaml").write_text(yaml.safe_dump(values))
    return values
