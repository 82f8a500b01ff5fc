"""A logistic head on sentence embeddings: fitted on labelled texts of all languages at once, measured on held-out ones.

The fit is reproducible to the bit: fixed folds, one thread of linear algebra. What the head is worth is said per
language: the area under the ROC curve with its interval, and the share of right answers at the threshold .5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgray.data.labelled import LabelledText
from xgray.errors import InputError

INVERSE_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-8, 1))
"""The values of C, the inverse of the L2 penalty on standardised embeddings, that cross-validation chooses from."""
NUM_FOLDS = 5
Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Head:
    weights: np.ndarray
    """``(dim,)``, float64, for embeddings as they come."""
    intercept: float

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The probability of toxic, ``(n,)``, of each of ``(n, dim)`` embeddings, whatever the others are."""
        # Not a matrix product: its summation order, and so the last bit, may depend on n.
        logits = (embeddings.astype(np.float64) * self.weights).sum(axis=1) + self.intercept
        return np.asarray(1 / (1 + np.exp(-logits)))


def fit_head(embeddings: np.ndarray, toxic: np.ndarray) -> tuple[Head, float]:
    """The head for ``(n, dim)`` embeddings and their ``(n,)`` labels, and the C that cross-validation chose.

    Raises:
        InputError: there are fewer texts of a label than cross-validation has folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from threadpoolctl import threadpool_limits

    if min(np.sum(toxic), np.sum(~toxic)) < NUM_FOLDS:
        raise InputError(f"score.labelled: at least {NUM_FOLDS} toxic and {NUM_FOLDS} benign rows are needed to fit on")
    vectors = embeddings.astype(np.float64)
    center, spread = vectors.mean(axis=0), vectors.std(axis=0) + 1e-12
    search = GridSearchCV(
        LogisticRegression(class_weight="balanced", max_iter=1000),
        {"C": INVERSE_STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0),
    )
    with threadpool_limits(1):
        search.fit((vectors - center) / spread, toxic)
    best = search.best_estimator_
    weights = best.coef_[0] / spread
    return Head(weights, float(best.intercept_[0] - (center * weights).sum())), float(best.C)


def measured(texts: Sequence[LabelledText], probabilities: np.ndarray) -> dict[str, dict[str, Any]]:
    """By language: AUC with its 95 % interval, counts, and the accuracy at the threshold .5, of held-out texts."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for code in dict.fromkeys(one.language for one in texts):
        chosen = np.array([one.language == code for one in texts])
        toxic = np.array([one.toxic for one in texts])[chosen]
        scores = probabilities[chosen]
        num_toxic, num_benign = int(toxic.sum()), int((~toxic).sum())
        auc = float(roc_auc_score(toxic, scores))
        low, high = auc_interval(auc, num_toxic, num_benign)
        found[code] = {
            "auc": auc,
            "low": low,
            "high": high,
            "num_toxic": num_toxic,
            "num_benign": num_benign,
            "accuracy": float(np.mean((scores >= 0.5) == toxic)),
        }
    return found


def auc_interval(auc: float, num_toxic: int, num_benign: int) -> tuple[float, float]:
    """The 95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25:559-573, method 5).

    Unlike DeLong's or a bootstrap interval it does not shrink to a point where the AUC is 1.
    """
    from scipy.optimize import brentq

    half = (num_toxic + num_benign) / 2 - 1

    def deviation(true: float) -> float:
        spread = 1 + half * (1 - true) / (2 - true) + half * true / (1 + true)
        return Z * math.sqrt(true * (1 - true) * spread / (num_toxic * num_benign))

    low = brentq(lambda true: auc - true - deviation(true), 0.0, auc) if auc > 0 else 0.0
    high = brentq(lambda true: true - auc - deviation(true), auc, 1.0) if auc < 1 else 1.0
    return float(low), float(high)
