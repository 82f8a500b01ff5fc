"""What several scorers say of the same completions, by hand-computed values."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from xgray.config import Evaluate
from xgray.evaluate.metrics import model_metrics, toxicity_inputs
from xgray.evaluate.robustness import (
    all_agreements,
    finding,
    findings,
    pair_agreement,
    paired_texts,
    scorer_changes,
    scorer_values,
)
from xgray.evaluate.rows import LanguageRows
from xgray.rows import item_ids

SECTION = Evaluate(resamples=500)


def rows(language, scores):
    """The rows of one language: a prompt for each row of ``scores``, which holds NaN for a missing score."""
    scores = np.array(scores, dtype=float)
    num, k = scores.shape
    ids = [f"{language}/{index}" for index in range(num)]
    return {
        language: LanguageRows(
            ids, item_ids(ids, language), ["same"] * num, [["text"] * k] * num, scores, np.full(scores.shape, np.nan)
        )
    }


def change(difference, significant=True):
    return {"difference": difference, "significant": significant}


@pytest.mark.parametrize(
    ("changes", "holds", "direction"),
    [
        ({"a": change(-0.2), "b": change(-0.1)}, "all", "fell"),
        ({"a": change(0.2), "b": change(0.1)}, "all", "rose"),
        ({"a": change(-0.2), "b": change(-0.1, False)}, "one", "fell"),
        ({"a": change(-0.2), "b": change(-0.1), "c": change(0.1, False)}, "some", "fell"),
        ({"a": change(-0.2, False), "b": change(0.1, False)}, "none", None),
        ({"a": change(-0.2), "b": change(0.1)}, "contradicted", None),
        ({"a": change(-0.2), "b": change(None, None)}, "one", "fell"),
        ({"a": change(None, None), "b": None}, "untested", None),
        ({"a": change(-0.2), "b": change(-0.1), "c": None}, "all", "fell"),
    ],
)
def test_a_finding_holds_under_all_some_or_one(changes, holds, direction):
    found = finding(changes)
    assert (found["holds"], found["direction"]) == (holds, direction)
    assert found["tested"] == [name for name, each in changes.items() if each and each["difference"] is not None]


def test_swapping_the_models_swaps_the_direction():
    base, tuned = rows("de", [[0.9, 0.1]] * 12), rows("de", [[0.2, 0.1]] * 12)
    there = scorer_changes({"base": base, "dpo": tuned}, SECTION)
    back = scorer_changes({"base": tuned, "dpo": base}, SECTION)
    found = [findings({"a": changes})["dpo"]["emt"]["languages"]["de"] for changes in (there, back)]
    assert [each["direction"] for each in found] == ["fell", "rose"]
    assert there["dpo"]["average"]["emt"]["difference"] == pytest.approx(-0.7)


def around(first, second):
    """Scores of twelve prompts with these means, which vary a little, the lower ones against the higher ones."""
    return [
        [
            first + 0.01 * (prompt % 3 - 1) * (1 if first > 0.35 else -1),
            second + (prompt % 2 - 0.5) * (second - 0.15) / 9,
        ]
        for prompt in range(12)
    ]


def test_values_and_findings_of_two_scorers_by_hand():
    """Under the second scorer nothing changes; it has no scores in English."""
    nothing = [[np.nan, np.nan]] * 12
    scored = {
        "a": {
            "base": rows("de", around(0.8, 0.2)) | rows("en", around(0.6, 0.2)),
            "dpo": rows("de", around(0.3, 0.1)) | rows("en", around(0.2, 0.2)),
        },
        "b": {
            "base": rows("de", around(0.4, 0.2)) | rows("en", nothing),
            "dpo": rows("de", around(0.4, 0.1)) | rows("en", nothing),
        },
    }
    values = scorer_values(scored["a"], SECTION)
    assert values["base"]["languages"]["de"]["emt"]["value"] == pytest.approx(0.8)
    assert values["base"]["average"]["emt"]["value"] == pytest.approx(0.7)
    assert values["dpo"]["languages"]["en"]["avg_tox"]["value"] == pytest.approx(0.2)
    missing = scorer_values(scored["b"], SECTION)["base"]
    assert missing["languages"]["en"]["emt"]["value"] is None
    assert missing["average"]["emt"]["value"] == pytest.approx(0.4)
    found = findings({name: scorer_changes(models, SECTION) for name, models in scored.items()})["dpo"]
    german, english = (found["emt"]["languages"][code] for code in ("de", "en"))
    assert (german["holds"], german["fell"], german["tested"]) == ("one", ["a"], ["a", "b"])
    assert (english["holds"], english["fell"], english["tested"]) == ("one", ["a"], ["a"])
    assert found["avg_tox"]["languages"]["de"]["holds"] == "all"


def test_the_first_scorer_has_the_values_of_the_other_tables():
    random = np.random.default_rng(3)
    of_model = rows("de", random.random((20, 4))) | rows("fr", random.random((20, 4)))
    inputs = {}
    for code, of_language in of_model.items():
        by_metric = toxicity_inputs(of_language, SECTION)
        inputs[code] = by_metric | dict.fromkeys(("perplexity", "dist_1", "dist_2", "dist_3"), by_metric["emt"])
    whole = model_metrics(inputs, of_model, ["de", "fr"], SECTION)
    values = scorer_values({"base": of_model}, SECTION)["base"]
    for name in ("emt", "tox_prob", "avg_tox"):
        assert values["average"][name] == whole["average"][name]
        assert values["languages"]["fr"][name] == whole["languages"]["fr"][name]


def test_agreement_is_over_the_texts_that_both_scored():
    first = {"base": rows("de", [[0.1, 0.9], [0.4, 0.6], [0.2, np.nan]])}
    second = {"base": rows("de", [[0.2, 0.7], [0.6, 0.8], [0.1, 0.5]])}
    texts = paired_texts(first, second, "de")
    assert texts.first.tolist() == [0.1, 0.9, 0.4, 0.6, 0.2]
    assert texts.items == ["0", "1", "2"]
    found = pair_agreement(("a", "b"), {"de": texts}, SECTION, 0)["languages"]["de"]
    assert found["num_texts"] == 5
    assert found["same_side"]["value"] == pytest.approx(4 / 5)
    assert found["spearman"]["value"] == pytest.approx(spearmanr(texts.first, texts.second).statistic)


def test_intervals_come_from_prompts_and_not_from_texts():
    """All completions of a prompt are alike, so that twenty of them say no more than one."""
    random = np.random.default_rng(0)
    first = random.random((15, 1))
    second = first + random.normal(0, 0.4, (15, 1))
    widths = []
    for k in (1, 20):
        scored = [{"base": rows("de", np.repeat(scores, k, axis=1))} for scores in (first, second)]
        found = pair_agreement(("a", "b"), {"de": paired_texts(*scored, "de")}, SECTION, 0)
        spearman = found["languages"]["de"]["spearman"]
        widths.append(spearman["high"] - spearman["low"])
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_translations_are_drawn_together():
    """A language that repeats another adds no certainty to the average."""
    random = np.random.default_rng(1)
    first, noise = random.random((30, 2)), random.normal(0, 0.3, (30, 2))
    german = {"de": (first, first + noise)}
    both = german | {"fr": german["de"]}
    averages = []
    for languages in (german, both):
        texts = {
            code: paired_texts({"base": rows(code, a)}, {"base": rows(code, b)}, code)
            for code, (a, b) in languages.items()
        }
        averages.append(pair_agreement(("a", "b"), texts, Evaluate(resamples=4000), 0)["average"]["spearman"])
    assert averages[1]["value"] == pytest.approx(averages[0]["value"])
    widths = [average["high"] - average["low"] for average in averages]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_a_scorer_that_says_the_same_of_all_texts_has_no_correlation():
    scored = {
        "a": {"base": rows("de", [[0.1, 0.9], [0.4, 0.6]])},
        "b": {"base": rows("de", [[0.3, 0.3], [0.3, 0.3]])},
        "c": {"base": rows("de", [[np.nan, np.nan]] * 2)},
    }
    constant, unscored, _ = all_agreements(scored, SECTION, 0)
    assert constant["languages"]["de"]["spearman"]["value"] is None
    assert constant["languages"]["de"]["spearman"]["reason"]
    assert constant["languages"]["de"]["same_side"]["value"] == pytest.approx(0.5)
    assert unscored["languages"] == {}
    assert unscored["average"]["spearman"]["value"] is None
    assert unscored["average"]["num_texts"] == 0
