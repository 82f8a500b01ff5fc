"""A scorer beside the first one leaves out the languages that it was not validated in."""

import asyncio

import pytest

from xgray.config import Score
from xgray.rows import NOT_VALIDATED
from xgray.score.dummy import DummyScorer
from xgray.score.validated_only import limited_scorer, scored_languages


@pytest.fixture
def scorer():
    found = DummyScorer(("toxicity",))
    found.validated = ("de",)
    return found


def test_languages_that_are_not_validated_have_no_scores(scorer):
    limited = limited_scorer(scorer, Score())
    assert scored_languages(scorer, Score(), ["de", "fr"]) == ["de"]
    german, french = (asyncio.run(limited.score(["some text", "more"], code)) for code in ("de", "fr"))
    assert german == asyncio.run(scorer.score(["some text", "more"], "de"))
    assert [(each.scores, each.error) for each in french] == [(None, NOT_VALIDATED)] * 2
    assert (limited.name, limited.version, limited.validated) == (scorer.name, scorer.version, scorer.validated)


def test_the_section_lets_a_scorer_score_them_unless_a_calibration_lacks_them(scorer):
    wanted = Score(unvalidated_languages=True)
    assert scored_languages(scorer, wanted, ["de", "fr"]) == ["de", "fr"]
    assert limited_scorer(scorer, wanted) is scorer
    assert scored_languages(scorer, Score(unvalidated_languages=True, calibration="c.json"), ["de", "fr"]) == ["de"]
