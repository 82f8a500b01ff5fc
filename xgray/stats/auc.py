"""How well scores separate toxic from benign texts: the area under the ROC curve (AUC) with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from xgray.stats.bootstrap import FloatArray, ValueWithInterval
from xgray.stats.values import LanguageAuc

BoolArray = npt.NDArray[np.bool_]

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def auc_by_language(
    languages: Sequence[str], toxic: BoolArray, scores: FloatArray, threshold: float
) -> dict[str, LanguageAuc]:
    """Return each language's AUC with its 95 % interval, its counts, and the accuracy at the threshold.

    Args:
        languages: The language of each text, ``(n,)``.
        toxic: The label of each text, ``(n,)``.
        scores: The score of each text, ``(n,)``; higher is more toxic.
        threshold: The lowest score that counts as toxic.
    """
    by_language: dict[str, LanguageAuc] = {}
    for language in dict.fromkeys(languages):
        mask = np.array([each == language for each in languages])
        language_toxic, language_scores = toxic[mask], scores[mask]
        auc = auc_against_labels(language_scores, language_toxic)
        by_language[language] = {
            "auc": auc.value,
            "low": auc.low,
            "high": auc.high,
            "num_toxic": int(language_toxic.sum()),
            "num_benign": int((~language_toxic).sum()),
            "accuracy": float(np.mean((language_scores >= threshold) == language_toxic)),
        }
        if auc.reason:
            by_language[language]["reason"] = auc.reason
    return by_language


def auc_against_labels(scores: FloatArray, toxic: BoolArray) -> ValueWithInterval:
    """Return the area under the ROC curve with its 95 % interval; no value if one of the two labels is missing.

    Args:
        scores: ``(n,)``, none missing; higher is more toxic.
        toxic: ``(n,)``.
    """
    from sklearn.metrics import roc_auc_score

    num_toxic, num_benign = int(toxic.sum()), int((~toxic).sum())
    if not num_toxic or not num_benign:
        return ValueWithInterval(None, reason="toxic and benign texts are both needed")
    auc = float(roc_auc_score(toxic, scores))
    return ValueWithInterval(auc, *auc_interval(auc, num_toxic, num_benign))


def auc_interval(auc: float, num_toxic: int, num_benign: int) -> tuple[float, float]:
    """Return the 95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25:559-573, method 5).

    Unlike DeLong's or a bootstrap interval it does not shrink to a point where the AUC is 1.
    """
    from scipy.optimize import brentq

    half = (num_toxic + num_benign) / 2 - 1

    def margin(true: float) -> float:
        """Return ``Z`` standard errors of the AUC if its true value were ``true``."""
        spread = 1 + half * (1 - true) / (2 - true) + half * true / (1 + true)
        return Z * math.sqrt(true * (1 - true) * spread / (num_toxic * num_benign))

    # An AUC of 0 or 1 solves its own equation; the step skips that solution to find the other.
    step = 1e-9
    low = brentq(lambda true: auc - true - margin(true), 0.0, auc - step) if auc > step else 0.0
    high = brentq(lambda true: true - auc - margin(true), auc + step, 1.0) if auc < 1 - step else 1.0
    return float(low), float(high)
