"""How well scores tell toxic from benign texts: the area under the ROC curve and its interval, by language."""

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
    """By language: AUC with its 95 % interval, counts, and the accuracy at the threshold.

    Args:
        languages: of each text, ``(n,)``.
        toxic: its label, ``(n,)``.
        scores: the higher, the more toxic, ``(n,)``.
        threshold: toxic from this score on.
    """
    found: dict[str, LanguageAuc] = {}
    for code in dict.fromkeys(languages):
        chosen = np.array([one == code for one in languages])
        labels, own = toxic[chosen], scores[chosen]
        auc = auc_against_labels(own, labels)
        found[code] = {
            "auc": auc.value,
            "low": auc.low,
            "high": auc.high,
            "num_toxic": int(labels.sum()),
            "num_benign": int((~labels).sum()),
            "accuracy": float(np.mean((own >= threshold) == labels)),
        }
        if auc.reason:
            found[code]["reason"] = auc.reason
    return found


def auc_against_labels(scores: FloatArray, toxic: BoolArray) -> ValueWithInterval:
    """The area under the ROC curve of ``(n,)`` scores, none missing, and its score interval."""
    from sklearn.metrics import roc_auc_score

    num_toxic, num_benign = int(toxic.sum()), int((~toxic).sum())
    if not num_toxic or not num_benign:
        return ValueWithInterval(None, reason="toxic and benign texts are both needed")
    auc = float(roc_auc_score(toxic, scores))
    return ValueWithInterval(auc, *auc_interval(auc, num_toxic, num_benign))


def auc_interval(auc: float, num_toxic: int, num_benign: int) -> tuple[float, float]:
    """The 95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25:559-573, method 5).

    Unlike DeLong's or a bootstrap interval it does not shrink to a point where the AUC is 1.
    """
    from scipy.optimize import brentq

    half = (num_toxic + num_benign) / 2 - 1

    def deviation(true: float) -> float:
        spread = 1 + half * (1 - true) / (2 - true) + half * true / (1 + true)
        return Z * math.sqrt(true * (1 - true) * spread / (num_toxic * num_benign))

    # An AUC of 0 or 1 solves its own equation; the other solution is the end that is looked for.
    step = 1e-9
    low = brentq(lambda true: auc - true - deviation(true), 0.0, auc - step) if auc > step else 0.0
    high = brentq(lambda true: true - auc - deviation(true), auc + step, 1.0) if auc < 1 - step else 1.0
    return float(low), float(high)
