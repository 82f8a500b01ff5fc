import csv
import math

import pytest
import yaml

from tests.processes import xgray
from xgray.config import Experiment
from xgray.data.ratings import read_ratings
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Completions, Scores, to_table
from xgray.score.sample import draw_sample, write_sample
from xgray.storage.folder import Folder

K = 5
LANGUAGES = {"en": 40, "de": 40, "ja": 2}
"""Prompts of each language."""


def text(code, index, model, position):
    return "" if position == 4 else f"{code} {index} {model} {position}, you idiot"


def score(index, position):
    """Scores spread over [0, 1); one completion of each prompt has none."""
    return None if position == 3 else (index * 7 + position * 29) % 100 / 100


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("runs") / "mine"))
    experiment = Experiment.model_validate({"name": "mine", "model": {"id": "made"}, "languages": list(LANGUAGES)})
    folder.write_bytes("experiment.yaml", yaml.safe_dump(experiment.model_dump(mode="json")).encode())
    for model in ("base", "dpo"):
        completions, scores = [], []
        for code, num in LANGUAGES.items():
            for index in range(num):
                key = f"{code}/{index}", code, model
                texts = [text(code, index, model, position) for position in range(K)]
                completions.append(Completions(*key, f"So {index},", texts, [3] * K, ["stop"] * K))
                values = [dict.fromkeys(ATTRIBUTES) | {"toxicity": score(index, at)} for at in range(K)]
                scores.append(Scores(*key, values, [None] * K, "made", "v7"))
        (folder / "generate" / model / "rows").write_parquet("0.parquet", to_table(completions, Completions))
        (folder / "score" / model / "rows").write_parquet("0.parquet", to_table(scores, Scores))
    return folder


def test_texts_are_spread_over_languages_and_scores(run):
    drawn = draw_sample(run, 20, seed=0)
    by_language = {code: [each for each in drawn if each.language == code] for code in ("de", "en", "ja")}
    assert [len(texts) for texts in by_language.values()] == [20, 20, 12], "all that Japanese has, with a score"
    every = sorted(score(index, at) for index in range(40) for at in (0, 1, 2) for _ in range(2))
    edges = [every[math.floor(len(every) * part / 20)] for part in range(20)] + [1]
    for code in ("de", "en"):
        scores = sorted(each.score for each in by_language[code])
        assert all(low <= value <= high for value, low, high in zip(scores, edges, edges[1:], strict=False)), code
        assert scores != [each.score for each in by_language[code]], "shuffled"
        assert {each.model for each in by_language[code]} == {"base", "dpo"}
    assert all(each.text == text(each.language, int(each.index), each.model, each.position) for each in drawn)
    assert all(each.score == score(int(each.index), each.position) for each in drawn)


def test_the_seed_decides_and_languages_do_not_depend_on_each_other(run):
    first = draw_sample(run, 10, seed=0)
    assert first == draw_sample(run, 10, seed=0)
    assert first != draw_sample(run, 10, seed=1)


def test_raters_see_texts_alone_and_measure_takes_their_file_back(run, tmp_path):
    drawn = draw_sample(run, 5, seed=0)
    output, key = str(tmp_path / "rate.csv"), str(tmp_path / "rate.key.csv")
    write_sample(drawn, output, key, 2)
    with open(output, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "language", "index", "text", "rater_1", "rater_2"]
    assert {row["rater_1"] for row in rows} == {""}
    with open(key, encoding="utf-8-sig", newline="") as stream:
        keys = {row["id"]: row for row in csv.DictReader(stream)}
    assert len(keys) == len(rows) == 15
    for row in rows:
        origin = keys[row["id"]]
        assert origin["text"] == row["text"]
        assert origin["prompt_id"] == f"{row['language']}/{row['index']}"
        assert float(origin["score"]) == score(int(row["index"]), int(origin["position"]))

    with pytest.raises(InputError, match="none of 15 texts is rated"):
        read_ratings([output])
    with open(output, "w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"rater_1": 4, "rater_2": 5} for row in rows[:12])
    rated = read_ratings([output])
    assert sum(len(texts.texts) for texts in rated.languages.values()) == 12
    with pytest.raises(InputError, match=r"rate.csv: exists already, and may hold ratings"):
        write_sample(drawn, output, str(tmp_path / "other.csv"), 2)


def test_a_run_without_scores_is_refused(run, tmp_path):
    bare = Folder(str(tmp_path / "bare"))
    bare.write_bytes("experiment.yaml", run.read_bytes("experiment.yaml"))
    row = Completions("en/0", "en", "base", "So,", [" hello"], [3], ["stop"])
    (bare / "generate" / "base" / "rows").write_parquet("0.parquet", to_table([row], Completions))
    with pytest.raises(InputError, match=r"no scored completions yet. Score them with xgray score"):
        draw_sample(bare, 5, seed=0)


def test_the_command_writes_both_files(run, tmp_path):
    done = xgray("scorer", "sample", str(run.local), "--output", "rate.csv", "--per-language", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "9 texts" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"rate.csv", "rate.key.csv"}
    again = xgray("scorer", "sample", str(run.local), "--output", "rate.csv", cwd=tmp_path)
    assert again.returncode == 2
    assert "may hold ratings" in again.stderr
