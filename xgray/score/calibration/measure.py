"""Measure a scorer against people: their ratings, or their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from xgray.config import Score
from xgray.data.answers import Answers, read_answers
from xgray.data.ratings import Ratings
from xgray.errors import InputError
from xgray.evaluate.agreement import ScoresOf, compare, scale_in_words
from xgray.evaluate.agreement_file import AgreementReport
from xgray.runs.progress import OnProgress
from xgray.score.build import build_scorer
from xgray.score.calibration.curves import Calibration, read_calibration
from xgray.score.calibration.scorer import CalibratedScorer
from xgray.score.rows import attribute_column, score_by_language, scorer_runner
from xgray.stats.bootstrap import FloatArray

RAW = "raw"
"""The name of the scorer without its calibration, where it has one."""


def measure_scorer(
    section: Score, ratings: Ratings, others: Sequence[Answers], on_progress: OnProgress
) -> AgreementReport:
    """Score rated texts and compare the scores with the ratings, beside other scorers' answers.

    Languages in which the scorer was not validated are measured too: this is how they are validated. With a calibration
    both the calibrated and the raw scores are measured.

    Args:
        section: the scorer's ``score`` section.
        others: where the answers of other scorers are; they are compared as toxicity.

    Raises:
        InputError: the scorer, its calibration or the answers are wrong, names repeat, or people rated none of the
            section's attributes.
    """
    scorer = build_scorer(without_calibration(section))
    names = [scorer.name, *([RAW] if section.calibration else []), *(answers.name for answers in others)]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--other {repeated}=...: another scorer in the table has this name; take another")
    attributes = [name for name in scorer.attributes if name in ratings.scales]
    if not attributes:
        raise InputError(
            f"score.attributes: {scorer.name} measures {', '.join(scorer.attributes)}, and people rated "
            f"{', '.join(ratings.scales)}"
        )
    answers = {other.name: {"toxicity": read_answers(other, ratings.languages)} for other in others}
    calibration = read_calibration(section.calibration) if section.calibration else None
    if calibration:
        CalibratedScorer(scorer, calibration)  # This refuses the calibration of another scorer.
    with scorer_runner(scorer) as runner:
        texts = {code: rated.texts for code, rated in ratings.languages.items()}
        results = score_by_language(runner, scorer, texts, on_progress)
    raw: dict[str, dict[str, FloatArray]] = {
        name: {code: attribute_column([results[code][text] for text in texts[code]], name) for code in texts}
        for name in attributes
    }
    scores: dict[str, ScoresOf] = {scorer.name: raw, **answers}
    version = scorer.version
    if calibration:
        scores = {scorer.name: _calibrated(raw, calibration), RAW: raw, **answers}
        version += f"+cal.{calibration.version}"
    on_progress("compare", 0, 0)
    return _report(ratings, scores, scorer.name, version)


def _calibrated(raw: Mapping[str, Mapping[str, FloatArray]], calibration: Calibration) -> ScoresOf:
    """Return the calibrated scores, in the languages of the calibration."""
    return {
        name: {
            code: np.where(np.isnan(values), np.nan, calibration.languages[code][name].apply(np.nan_to_num(values)))
            for code, values in by_language.items()
            if code in calibration.languages
        }
        for name, by_language in raw.items()
    }


def _report(ratings: Ratings, scores: Mapping[str, ScoresOf], name: str, version: str) -> AgreementReport:
    comparison = compare(ratings, scores)
    return AgreementReport(
        scorer=name,
        scorer_version=version,
        agreement_data=ratings.data,
        fingerprint=ratings.fingerprint,
        num_raters=ratings.num_raters,
        scales={attribute: scale_in_words(ratings.scales[attribute]) for attribute in comparison.scorers[name]},
        agreement=comparison.scorers[name],
        raters=comparison.raters,
        others={other: table for other, table in comparison.scorers.items() if other != name},
        baselines=comparison.baselines,
        validated=comparison.validated(name),
    )


def without_calibration(section: Score) -> Score:
    """Return the section of the raw scorer, of which nothing is stated."""
    execution = section.execution.model_copy(update={"agreement": None})
    return section.model_copy(update={"calibration": None, "execution": execution})
