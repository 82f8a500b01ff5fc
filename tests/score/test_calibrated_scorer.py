import asyncio
import json

import numpy as np
import pytest

from xgray.config import Score
from xgray.errors import InputError
from xgray.rows import EMPTY_TEXT
from xgray.score.build import build_scorer
from xgray.score.calibration.curves import Pairs, fit_calibration
from xgray.score.calibration.scorer import CalibratedScorer
from xgray.score.scorer import Scored, ScorerId, score_texts

TEXTS = ["You are such an idiot.", "The meeting starts at nine.", "a longer text, " * 10, "thank you", "go away"]


class LengthScorer:
    """Scores a text by its length; ``?`` has no score and ``half`` only one attribute."""

    name = "length"
    version = "1"
    device = "cpu"
    attributes = ("toxicity", "insult")
    validated = ("en", "de", "ja")
    closed = False

    async def score(self, texts, language):
        return [
            Scored(None, "unsupported", is_permanent=True)
            if text == "?"
            else Scored(
                {"toxicity": len(text) / 100, "insult": None if text == "half" else len(text) / 200}, seconds=0.5
            )
            for text in texts
        ]

    def provenance(self):
        return {"scorer": self.name, "version": self.version, "fact": 3}

    async def close(self):
        self.closed = True


def calibration_for(scorer, num=100, attributes=("toxicity", "insult"), languages=("en", "de")):
    random = np.random.default_rng(0)
    raw = random.random(num)
    target = np.clip(raw**2 * 1.6 + random.normal(0, 0.05, num), 0, 1)
    columns = dict.fromkeys(attributes, raw), dict.fromkeys(attributes, target)
    return fit_calibration(
        {code: Pairs([str(index) for index in range(num)], *columns) for code in languages},
        ScorerId.of(scorer),
        ScorerId("perspective", "perspective/v1alpha1"),
        "2026-01-31",
        attributes=attributes,
        resamples=100,
    )


def score(scorer, texts, language="en"):
    return asyncio.run(score_texts(scorer, texts, language, "corrected"))


def test_scores_are_mapped_by_the_curves():
    inner = LengthScorer()
    calibration = calibration_for(inner)
    scorer = CalibratedScorer(inner, calibration)
    texts = ["a" * length for length in range(1, 100, 7)]
    results = score(scorer, texts)
    curve = calibration.languages["en"]["toxicity"]
    expected = np.interp([len(text) / 100 for text in texts], curve.x, curve.y)
    assert [result.scores["toxicity"] for result in results] == pytest.approx(expected)
    assert [result.scores["insult"] for result in results] == pytest.approx(
        np.interp([len(text) / 200 for text in texts], curve.x, curve.y)
    )
    assert all(result.seconds == 0.5 for result in results)


def test_a_score_does_not_depend_on_its_neighbours():
    scorer = CalibratedScorer(inner := LengthScorer(), calibration_for(inner))
    texts = ["a" * length for length in range(1, 100)] * 5
    together = [result.scores for result in asyncio.run(scorer.score(texts, "en"))]
    assert [asyncio.run(scorer.score([text], "en"))[0].scores for text in texts[:99]] == together[:99]


def test_missing_scores_stay_missing():
    scorer = CalibratedScorer(inner := LengthScorer(), calibration_for(inner))
    refused, empty, half, whole = score(scorer, ["?", " ", "half", "whole"])
    assert (refused.scores, refused.error) == (None, "unsupported")
    assert (empty.scores, empty.error) == (None, EMPTY_TEXT)
    assert half.scores["insult"] is None
    assert half.scores["toxicity"] is not None
    assert whole.scores["insult"] is not None


def test_provenance_names_the_scorer_and_the_calibration():
    inner = LengthScorer()
    calibration = calibration_for(inner)
    scorer = CalibratedScorer(inner, calibration)
    assert scorer.name == "length"
    assert scorer.version == f"1+cal.{calibration.version}"
    assert scorer.validated == ("de", "en")
    assert scorer.attributes == ("toxicity", "insult")
    facts = scorer.provenance()
    assert (facts["scorer"], facts["version"], facts["fact"]) == ("length", scorer.version, 3)
    calibration_facts = facts["calibration"]
    assert calibration_facts["scorer_version"] == "1"
    assert calibration_facts["target_version"] == "perspective/v1alpha1"
    assert calibration_facts["data"] == {
        "fingerprint": calibration.data.fingerprint,
        "num_pairs": 200,
        "date": "2026-01-31",
    }
    english = calibration_facts["languages"]["en"]["toxicity"]
    assert english["threshold"]["low"] < english["threshold"]["value"] < english["threshold"]["high"]
    assert english["agreement"]["calibrated"]["kappa"]["value"] > 0.8
    assert "x" not in english
    json.dumps(facts, allow_nan=False)
    asyncio.run(scorer.close())
    assert inner.closed


def test_a_calibration_for_another_scorer_version_or_attribute_is_refused():
    inner = LengthScorer()
    calibration = calibration_for(inner)
    older, other = LengthScorer(), LengthScorer()
    older.version = "0"
    other.name = "width"
    with pytest.raises(InputError, match="made for scorer length version 1, not for length version 0"):
        CalibratedScorer(older, calibration)
    with pytest.raises(InputError, match="not for width version 1"):
        CalibratedScorer(other, calibration)
    with pytest.raises(InputError, match=r"holds no insult.*score\.attributes to \[toxicity\]"):
        CalibratedScorer(inner, calibration_for(inner, attributes=("toxicity",)))
    with pytest.raises(InputError, match="made for scorer length"):
        CalibratedScorer(CalibratedScorer(inner, calibration), calibration)


def test_a_language_without_a_map_is_refused():
    scorer = CalibratedScorer(inner := LengthScorer(), calibration_for(inner))
    with pytest.raises(InputError, match=r"score\.calibration: not for ja \(it had no pairs\); it is for de en"):
        score(scorer, ["word"], "ja")


def test_the_local_scorer_is_calibrated():
    inner = build_scorer(Score())
    calibration = calibration_for(inner, attributes=("toxicity",))
    curve = calibration.languages["en"]["toxicity"]
    raw = np.array([result.scores["toxicity"] for result in score(inner, TEXTS)])
    scorer = CalibratedScorer(inner, calibration)
    calibrated = [result.scores["toxicity"] for result in score(scorer, TEXTS)]
    assert calibrated == curve.apply(raw).tolist()
    assert calibrated != raw.tolist()
    assert scorer.provenance()["agreement"] == inner.provenance()["agreement"]
    asyncio.run(scorer.close())
