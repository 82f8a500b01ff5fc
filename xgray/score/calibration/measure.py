"""Measure a scorer against human labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgray.config import Score
from xgray.score.build import build_scorer
from xgray.score.rows import OnProgress, attribute_column, score_by_language, scorer_runner
from xgray.score.scorer import check_languages

if TYPE_CHECKING:
    from xgray.score.calibration.agreement import LabelRow


def measure_scorer(section: Score, labelled: str, on_progress: OnProgress) -> list[LabelRow]:
    """A scorer against human labels, by language.

    Args:
        section: the scorer's; of its calibration the thresholds are taken, which AUC does not depend on.
        labelled: a folder of labelled texts; all of them are taken, whatever their split.
    """
    import numpy as np

    from xgray.data.labelled import read_labelled
    from xgray.score.calibration.agreement import label_rows

    scorer = build_scorer(without_calibration(section))
    found = read_labelled(labelled)
    languages = list(dict.fromkeys(one.language for one in found))
    check_languages(scorer, languages, section.unvalidated_languages)
    texts = {code: [one.text for one in found if one.language == code] for code in languages}
    labels = {code: np.array([one.toxic for one in found if one.language == code]) for code in languages}
    with scorer_runner(scorer) as runner:
        scored = score_by_language(runner, scorer, texts, on_progress)
    scores = {
        code: attribute_column([scored[code][text] for text in texts[code]], section.attributes[0])
        for code in languages
    }
    thresholds: dict[str, float] = {}
    if section.calibration is not None:
        from xgray.score.calibration.curves import read_calibration
        from xgray.score.calibration.scorer import CalibratedScorer

        calibration = read_calibration(section.calibration)
        CalibratedScorer(scorer, calibration)  # refuses another scorer's
        curves = calibration.languages
        images = {code: curves[code][section.attributes[0]].threshold.value for code in languages if code in curves}
        thresholds = {code: value for code, value in images.items() if value is not None}
    return label_rows(scores, labels, thresholds)


def without_calibration(section: Score) -> Score:
    return section.model_copy(update={"calibration": None})
