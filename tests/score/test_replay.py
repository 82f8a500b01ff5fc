"""Archived requests replayed with the dummy scorer, whose scores are hashes of the texts."""

import asyncio
import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from xgray.cli.replay import replay as replay_command
from xgray.cli.scores import FileOptions
from xgray.config import Score
from xgray.data.archives.archived import ArchiveOptions
from xgray.errors import InputError
from xgray.score.calibration.curves import Pairs, fit_calibration, write_calibration
from xgray.score.calibration.replay import AVERAGE, read_archive, replay
from xgray.score.dummy import DummyScorer
from xgray.score.scorer import ScorerId

ANYWHERE = Score(scorer="dummy", unvalidated_languages=True)
NUM = 40


def no_progress(label, done, total, errors=0):
    pass


def here(text):
    """What the dummy scorer says."""
    (scored,) = asyncio.run(DummyScorer(("toxicity",)).score([text], "en"))
    return scored.scores["toxicity"]


def logged(text, code, **scores):
    """A line of a log of requests."""
    attributes = {name: {"summaryScore": {"value": value}} for name, value in scores.items()}
    request = {"comment": {"text": text}, "languages": [code], "requestedAttributes": {name: {} for name in scores}}
    return json.dumps({"request": request, "response": {"attributeScores": attributes, "languages": [code]}})


def there(text):
    """What Perspective said: another number that follows from the text."""
    return (here(text) + here(text[::-1])) / 2


@pytest.fixture
def log(tmp_path):
    """Requests in two languages with answers of 2023; every other one asked for INSULT too."""
    lines = []
    for code in ("en", "de"):
        for index in range(NUM):
            text = f"{code} text {index}"
            more = {"INSULT": 0.5} if index % 2 else {}
            lines.append(logged(text, code, TOXICITY=there(text), **more))
    lines += [
        lines[0],
        logged("tekst", "fi", TOXICITY=0.5),
        json.dumps({"request": {}, "response": {"error": "no"}, "text": "x"}),
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def read(path, most=None, seed=0, **options):
    return read_archive([path], ArchiveOptions(scored="2023", **options), most, seed, no_progress)


def test_differences_are_those_of_the_scores_by_language(log):
    archive = read(log)
    report = replay(archive, ANYWHERE, no_progress, resamples=200)
    (version,) = report.versions
    assert version == "perspective/v1alpha1/2023"
    table = report.versions[version].differences["toxicity"]
    assert list(table) == ["de", "en", AVERAGE]
    for code in ("de", "en"):
        texts = [f"{code} text {index}" for index in range(NUM)]
        a, b = (np.array([score(text) for text in texts]) for score in (here, there))
        assert table[code].num == NUM
        assert table[code].spearman.value == pytest.approx(spearmanr(a, b).statistic)
        assert table[code].difference.value == pytest.approx(np.mean(a - b))
        assert table[code].absolute_difference.value == pytest.approx(np.mean(np.abs(a - b)))
        assert table[code].same_side.value == pytest.approx(np.mean((a >= 0.5) == (b >= 0.5)))
        assert table[code].here_alone.value == pytest.approx(np.mean((a >= 0.5) & (b < 0.5)))
        assert table[code].there_alone.value == pytest.approx(np.mean((a < 0.5) & (b >= 0.5)))
        for name in ("spearman", "difference", "absolute_difference", "same_side"):
            figure = getattr(table[code], name)
            assert figure.low < figure.value < figure.high
    average = table[AVERAGE].difference
    assert average.value == pytest.approx((table["de"].difference.value + table["en"].difference.value) / 2)
    assert average.high - average.low < table["de"].difference.high - table["de"].difference.low
    assert archive.left_out["repeated text"] == archive.left_out["language fi"] == 1
    assert report.is_answered


def test_shares_of_none_or_all_are_uncertain(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(logged(f"text {index}", "en", TOXICITY=here(f"text {index}")) for index in range(10)))
    (version,) = replay(read(str(path)), ANYWHERE, no_progress).versions.values()
    same = version.differences["toxicity"]["en"].same_side
    assert (same.value, same.high) == (1, 1)
    assert same.low == pytest.approx(0.722, abs=0.001)  # Wilson's interval of 10 of 10
    (version,) = replay(read(str(path), most=1), ANYWHERE, no_progress).versions.values()
    figure = version.differences["toxicity"]["en"].difference
    assert (figure.value, figure.low) == (0, None)


def test_requests_for_what_the_scorer_lacks_are_counted(log, tmp_path):
    texts = [f"en text {index}" for index in range(60)]
    scores = {
        name: {"toxicity": np.array([score(text) for text in texts])}
        for name, score in (("raw", here), ("target", there))
    }
    calibration = fit_calibration(
        {"en": Pairs(texts, **scores)}, ScorerId("dummy", "1"), ScorerId("perspective", "x"), "2026-01-01", resamples=50
    )
    path = str(tmp_path / "calibration.json")
    write_calibration(path, calibration)
    report = replay(read(log), Score(scorer="dummy", calibration=path), no_progress, resamples=50)
    (version,) = report.versions.values()
    assert (version.num_requests, version.num_replayed) == (2 * NUM, NUM)
    assert version.refused_languages == {"de": NUM}
    assert version.refused_attributes == {"insult": NUM // 2}
    assert version.num_refused == NUM + NUM // 2
    assert version.num_refused_partial == NUM
    assert list(version.differences["toxicity"]) == ["en"]
    assert abs(version.differences["toxicity"]["en"].difference.value) < 0.05


def test_years_are_kept_apart_and_a_text_is_scored_under_each(tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"text {index},{0.1 * index},20{20 + index % 2 * 3}" for index in range(10)]
    table.write_text("\n".join(["text,score,scored", *rows]))
    archive = read_archive([str(table)], ArchiveOptions(languages=("en",)), None, 0, no_progress)
    report = replay(archive, ANYWHERE, no_progress, resamples=50)
    assert {name: each.num_requests for name, each in report.versions.items()} == {
        "perspective/v1alpha1/2020": 5,
        "perspective/v1alpha1/2023": 5,
    }


def test_the_texts_that_are_drawn_depend_on_the_seed_alone(log, tmp_path):
    lines = Path(log).read_text().splitlines()
    random.Random(0).shuffle(lines)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("\n".join(lines))

    def drawn(path, seed):
        by_language = read(str(path), most=7, seed=seed).drawn["perspective/v1alpha1/2023"]
        return {code: {entry.text for entry in entries} for code, entries in by_language.items()}

    first = drawn(log, 0)
    assert [len(texts) for texts in first.values()] == [7, 7]
    assert drawn(shuffled, 0) == first
    assert drawn(log, 1) != first


def test_the_command_prints_every_figure_and_what_would_be_refused(log, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    options = "--score.scorer", "dummy", "--score.unvalidated-languages", "true"
    dated = FileOptions(scored="2023")
    assert replay_command(log, *options, file_options=dated) == 0
    printed = capsys.readouterr().out
    for fact in ("dummy", "average", "INSULT 40", "perspective/v1alpha1/2023", "repeated text", "50.0 %"):
        assert fact in printed
    assert replay_command(log, *options, file_options=dated, most=5, as_json=True) == 0
    (report,) = json.loads(capsys.readouterr().out)["scorers"].values()
    assert report["versions"]["perspective/v1alpha1/2023"]["num_replayed"] == 10


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (logged(" ", "en", TOXICITY=0.5), "empty text"),
        (json.dumps({"request": {"comment": {"text": "a"}}, "response": {"error": {"message": "quota"}}}), "quota"),
    ],
)
def test_an_archive_without_answers_is_refused(tmp_path, line, fact):
    path = tmp_path / "log.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=fact):
        read(str(path))


def test_a_replay_without_anything_to_compare_is_no_success(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    path.write_text(logged("a text", "en", PROFANITY=0.5))
    options = "--score.scorer", "dummy", "--score.unvalidated-languages", "true"
    assert replay_command(str(path), *options, file_options=FileOptions(scored="2023")) == 1
    assert "PROFANITY 1" in capsys.readouterr().out
