"""Measure a scorer against human labels."""

from __future__ import annotations

import numpy as np

from xgray.config import Score
from xgray.data.labelled import read_labelled
from xgray.runs.progress import OnProgress
from xgray.score.build import build_scorer
from xgray.score.calibration.agreement import LabelRow, label_rows
from xgray.score.calibration.curves import read_calibration
from xgray.score.calibration.scorer import CalibratedScorer
from xgray.score.rows import attribute_column, score_by_language, scorer_runner
from xgray.score.scorer import Scorer, check_languages


def measure_scorer(section: Score, labelled: str, on_progress: OnProgress) -> list[LabelRow]:
    """Score labelled texts and compare the scores with the labels, language by language.

    The scores are raw: of the section's calibration only the thresholds are used, since AUC does not depend on it.

    Args:
        section: the scorer's ``score`` section.
        labelled: a folder of labelled texts; the texts of all splits are used.

    Raises:
        InputError: the texts, the scorer or its calibration are wrong, or the scorer was not validated in a language.
    """
    scorer = build_scorer(without_calibration(section))
    rows = read_labelled(labelled)
    languages = list(dict.fromkeys(row.language for row in rows))
    check_languages(scorer, languages, section.unvalidated_languages)
    texts = {code: [row.text for row in rows if row.language == code] for code in languages}
    labels = {code: np.array([row.toxic for row in rows if row.language == code]) for code in languages}
    with scorer_runner(scorer) as runner:
        results = score_by_language(runner, scorer, texts, on_progress)
    attribute = section.attributes[0]
    scores = {code: attribute_column([results[code][text] for text in texts[code]], attribute) for code in languages}
    return label_rows(scores, labels, _calibrated_thresholds(section, scorer, languages, attribute))


def _calibrated_thresholds(section: Score, scorer: Scorer, languages: list[str], attribute: str) -> dict[str, float]:
    """Return the raw scores that the section's calibration maps to the threshold, by language."""
    if section.calibration is None:
        return {}
    calibration = read_calibration(section.calibration)
    CalibratedScorer(scorer, calibration)  # This refuses the calibration of another scorer.
    curves = calibration.languages
    thresholds = {code: curves[code][attribute].threshold.value for code in languages if code in curves}
    return {code: value for code, value in thresholds.items() if value is not None}


def without_calibration(section: Score) -> Score:
    """Return the section of the raw scorer."""
    return section.model_copy(update={"calibration": None})
