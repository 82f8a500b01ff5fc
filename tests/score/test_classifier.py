import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.score.tiny_classifier import classifier_section, tiny_classifier
from xgray.data.labelled import read_labelled
from xgray.errors import InputError
from xgray.models.load import load_sequence_classifier
from xgray.rows import EMPTY_TEXT
from xgray.score.build import build_scorer
from xgray.score.classifier import FLOAT32_TOLERANCE, label_columns
from xgray.score.scorer import score_texts

TEXTS = [row.text for row in read_labelled("embedded")[::16]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_classifier(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scorer(folder):
    return build_scorer(classifier_section(folder))


def scores(scorer, texts, attribute="toxicity"):
    return [result.scores[attribute] for result in asyncio.run(score_texts(scorer, texts, "en", "corrected"))]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("xlm-roberta", {}),
        ("bert", {"problem_type": "multi_label_classification"}),
        ("xlm-roberta", {"labels": ["toxic"]}),
        ("llama", {}),
    ],
)
def test_scores_equal_those_of_transformers_pipeline(tmp_path, kind, changes):
    from transformers import pipeline

    path = tiny_classifier(tmp_path, kind, **changes)
    plain = pipeline("text-classification", path, top_k=None, truncation=True)
    answers = plain(TEXTS, batch_size=1)
    expected = [next(label["score"] for label in answer if label["label"] == "toxic") for answer in answers]
    toxicity = scores(build_scorer(classifier_section(path)), TEXTS)
    assert toxicity == pytest.approx(expected, abs=FLOAT32_TOLERANCE)
    assert max(toxicity) - min(toxicity) > 0.05


def test_batches_and_order_change_a_score_by_rounding_alone(folder, scorer):
    together = scores(scorer, TEXTS)
    assert scores(scorer, TEXTS[::-1]) == pytest.approx(together[::-1], abs=FLOAT32_TOLERANCE)
    for batch_tokens in (1, 100):
        other = build_scorer(classifier_section(folder, execution={"batch_tokens": batch_tokens}))
        assert other.version == scorer.version
        assert scores(other, TEXTS) == pytest.approx(together, abs=FLOAT32_TOLERANCE)

    async def at_once():
        return await asyncio.gather(*(scorer.score([text], "en") for text in TEXTS))

    alone = [result.scores["toxicity"] for (result,) in asyncio.run(at_once())]
    assert alone == pytest.approx(together, abs=FLOAT32_TOLERANCE)


def test_any_text_gets_a_probability_and_truncated_texts_are_counted(folder):
    scorer = build_scorer(classifier_section(folder))
    odd = [
        "half \ud83d pair",
        "bell\x07 nul\x00",
        "a\u2028b",
        "\u200f\u202eשלום",
        "👩‍👩‍👧" * 9,
        "été 你好 हिन्दी",
        "x",
        "y" * 30_000,
    ]
    results = asyncio.run(score_texts(scorer, [*odd, "", " \n"], "en", "corrected"))
    assert all(0 < result.scores["toxicity"] < 1 for result in results[:-2])
    assert [result.error for result in results[-2:]] == [EMPTY_TEXT, EMPTY_TEXT]
    facts = scorer.provenance()
    assert facts["max_length"] == 64
    assert facts["num_texts"] == len(odd)
    assert facts["num_cut"] == 2
    assert scores(scorer, ["word " * 500]) == pytest.approx(scores(scorer, ["word " * 700]), abs=FLOAT32_TOLERANCE)


def test_a_model_takes_as_many_tokens_as_it_has_positions(tmp_path):
    path = tiny_classifier(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 10**30}))
    scorer = build_scorer(classifier_section(path))
    assert scorer.provenance()["max_length"] == 64
    assert scores(scorer, ["word " * 500])


def test_provenance_and_version(folder, scorer):
    facts = scorer.provenance()
    assert facts["scorer"] == "classifier"
    assert facts["labels"] == {"toxicity": "toxic"}
    assert facts["activation"] == "softmax"
    assert scorer.validated == ("en", "zh-hans")
    json.dumps(facts)
    others = [
        classifier_section(folder, labels={"toxicity": "insulting"}),
        classifier_section(folder, dtype="bfloat16"),
    ]
    assert len({scorer.version, *(build_scorer(other).version for other in others)}) == 3


def test_an_activation_that_the_section_names_takes_the_place_of_the_models(folder, scorer):
    named = {}
    for activation in ("softmax", "sigmoid"):
        section = classifier_section(folder)
        options = section.classifier.model_copy(update={"activation": activation})
        named[activation] = build_scorer(section.model_copy(update={"classifier": options}))
        assert named[activation].provenance()["activation"] == activation
    assert "activation" not in classifier_section(folder).model_dump(mode="json")["classifier"]
    assert len({scorer.version, *(other.version for other in named.values())}) == 3
    assert scores(named["softmax"], TEXTS) == pytest.approx(scores(scorer, TEXTS), abs=FLOAT32_TOLERANCE)
    assert scores(named["sigmoid"], TEXTS) != pytest.approx(scores(scorer, TEXTS), abs=0.01)


def test_several_attributes_are_columns_of_one_output(folder):
    labels = {"toxicity": "toxic", "insult": "insulting"}
    scorer = build_scorer(classifier_section(folder, labels=labels, attributes=["toxicity", "insult"]))
    both = [sum(pair) for pair in zip(scores(scorer, TEXTS), scores(scorer, TEXTS, "insult"), strict=True)]
    harmless = build_scorer(classifier_section(folder, labels={"toxicity": "harmless"}))
    assert both == pytest.approx([1 - score for score in scores(harmless, TEXTS)], abs=FLOAT32_TOLERANCE)


def test_an_output_that_is_not_finite_becomes_a_missing_score(tmp_path):
    import torch

    path = tiny_classifier(tmp_path)
    model = load_sequence_classifier(path, "float32")
    model.classifier.out_proj.weight.data.fill_(torch.inf)
    model.save_pretrained(path)
    (result,) = asyncio.run(build_scorer(classifier_section(path)).score(["word"], "en"))
    assert result.scores is None
    assert "not finite" in result.error


@pytest.mark.parametrize(
    ("labels", "attributes", "message"),
    [
        ({"toxicity": "Toxic"}, ["toxicity"], r"labels.toxicity: .*no label 'Toxic'; did you mean 'toxic'\?"),
        ({"toxicity": "LABEL_1"}, ["toxicity"], "It has: harmless, toxic, insulting"),
        ({"rudeness": "toxic"}, ["toxicity"], "labels: 'rudeness' is no attribute; known: toxicity"),
        ({"toxicity": "toxic"}, ["toxicity", "insult"], "labels: no label for insult; the model has: harmless"),
        ({}, ["toxicity"], "no label for toxicity"),
    ],
)
def test_labels_that_do_not_match_the_model_or_the_attributes_are_refused(labels, attributes, message):
    with pytest.raises(InputError, match=message):
        label_columns(labels, attributes, {0: "harmless", 1: "toxic", 2: "insulting"})


def with_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def as_pickle(folder):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_head(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_config(architectures=["XLMRobertaForMaskedLM"]), "no sequence classifier: .* XLMRobertaForMaskedLM"),
        (with_config(problem_type="regression"), "is a regression"),
        (with_config(model_type="nonsense"), "score.classifier.model: cannot read .*nonsense"),
        (without_head, "no weights classifier.dense.bias, "),
        (as_pickle, r"a pickle \(pytorch_model.bin\).*Convert it once: python -c"),
        (truncated, "cannot load the model"),
        (shutil.rmtree, r"score\.classifier\.model\.id: no such folder"),
    ],
)
def test_a_model_that_is_no_usable_classifier_is_refused(folder, tmp_path, change, message):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change(copy)
    with pytest.raises(InputError, match=message):  # for its configuration at once, for its weights with the first text
        asyncio.run(build_scorer(classifier_section(str(copy))).score(["hello"], "en"))


def test_a_scorer_without_a_model_or_with_unknown_languages_is_refused(folder):
    section = classifier_section(folder)
    unknown = section.classifier.model_copy(update={"languages": ["tlh"]})
    nothing = section.classifier.model_copy(update={"model": None})
    with pytest.raises(InputError, match=r"score\.classifier\.languages: unknown language 'tlh'"):
        build_scorer(section.model_copy(update={"classifier": unknown}))
    with pytest.raises(InputError, match=r"score\.classifier\.model: the scorer classifier needs one"):
        build_scorer(section.model_copy(update={"classifier": nothing}))
