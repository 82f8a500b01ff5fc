from tests.report.example_run import K
from xgray.report.examples import FELL, ROSE, WORST, choose_examples
from xgray.report.files import RunFiles
from xgray.rows import Completions, Scores, to_table
from xgray.storage.folder import Folder


def write_scores(run, scores):
    """Write a prompt for each value of ``scores[model]``: the score of its worst completion, None for no scores."""
    for model, values in scores.items():
        texts, rows = [], []
        for index, value in enumerate(values):
            key = (f"en/{index}", "en", model)
            texts.append(Completions(*key, f"prompt {index}", ["mild", f"{model} {index}", ""], [1] * K, ["stop"] * K))
            if value is None:
                rows.append(Scores(*key, [None] * K, ["late"] * K, "made", "1"))
            else:
                attributes = [{"toxicity": 0.01}, {"toxicity": value}, {"toxicity": None}]
                rows.append(Scores(*key, attributes, [None, None, "empty"], "made", "1"))
        (run / "generate" / model / "rows").write_parquet("0.parquet", to_table(texts, Completions))
        (run / "score" / model / "rows").write_parquet("0.parquet", to_table(rows, Scores))
    metrics = {
        "attribute": "toxicity",
        "languages": ["en"],
        "models": dict.fromkeys(scores),
        "comparisons": {model: {} for model in scores if model != "base"},
    }
    (run / "evaluate").write_json("metrics.json", metrics)
    return RunFiles(run)


def chosen(files, num_examples):
    examples = choose_examples(files, num_examples).get("en", [])
    return [(example.kind, example.prompt_id) for example in examples]


def test_kinds_take_turns_beginning_with_the_most_toxic(tmp_path):
    files = write_scores(
        Folder(str(tmp_path)),
        {"base": [0.9, 0.8, 0.9, 0.1, 0.5, None], "dpo": [0.2, 0.5, 0.95, 0.6, 0.4, 0.99]},
    )
    assert chosen(files, 1) == [(WORST, "en/2")]
    assert chosen(files, 3) == [(WORST, "en/2"), (FELL, "en/0"), (ROSE, "en/3")]
    assert chosen(files, 9) == [(WORST, "en/2"), (FELL, "en/0"), (ROSE, "en/3"), (WORST, "en/1"), (FELL, "en/4")]
    assert chosen(files, 0) == []


def test_example_shows_every_models_most_toxic_completion(tmp_path):
    files = write_scores(Folder(str(tmp_path)), {"base": [0.9], "dpo": [0.3], "other": [0.4]})
    (example,) = choose_examples(files, 1)["en"]
    assert [(worst.model, worst.text, worst.score) for worst in example.worst] == [
        ("base", "base 0", 0.9),
        ("dpo", "dpo 0", 0.3),
        ("other", "other 0", 0.4),
    ]


def test_single_model_shows_its_most_toxic_prompts(tmp_path):
    files = write_scores(Folder(str(tmp_path)), {"base": [0.3, 0.9]})
    assert chosen(files, 2) == [(WORST, "en/1"), (WORST, "en/0")]
