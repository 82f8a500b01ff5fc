"""Isotonic regression of one scorer's scores on another's, and where the fitted map crosses a threshold.

Arrays are ``(n,)`` float64 in [0, 1] without missing values: ``raw`` scores, and the ``target`` scores of the same
texts that they are mapped to. A map is a pair ``x, y`` of ascending knots ``(num_knots,)``, linear between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgray.stats.agreement import Sample, resample_together
from xgray.stats.bootstrap import CountStatistic, FloatArray, ValueWithInterval, percentile_interval

NUM_FOLDS = 5


def fit_knots(raw: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the non-decreasing map from ``raw`` to ``target`` with the least squared error, as knots ``x, y``."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, target)
    return fitted.X_thresholds_, fitted.y_thresholds_


def interpolate(raw: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Map raw scores: linearly between knots, and to the nearest knot outside of them."""
    return np.clip(np.interp(raw, x, y), y[0], y[-1])  # rounding may take interpolated values beyond a knot


def predict_out_of_fold(raw: FloatArray, target: FloatArray, groups: Sequence[str] | None = None) -> FloatArray:
    """Map each raw score by the map that is fitted to the other folds; group i belongs to fold ``i % NUM_FOLDS``.

    Args:
        groups: of each text, ``(n,)``, counted in their order; by default each text is a group.
    """
    number: dict[str, int] = {}
    fold = np.array([number.setdefault(group, len(number)) for group in _groups(raw, groups)]) % NUM_FOLDS
    mapped = np.empty(len(raw))
    for held_out in range(NUM_FOLDS):
        inside = fold == held_out
        mapped[inside] = interpolate(raw[inside], *fit_knots(raw[~inside], target[~inside]))
    return mapped


def crossing(x: FloatArray, y: FloatArray, level: float) -> float | None:
    """Return the lowest raw score that is mapped to ``level``; None if all knots are below it, or none is."""
    if y[-1] < level or y[0] >= level:
        return None
    above = int(np.searchsorted(y, level))
    share = (level - y[above - 1]) / (y[above] - y[above - 1])
    return float(x[above - 1] + share * (x[above] - x[above - 1]))


def _groups(raw: FloatArray, groups: Sequence[str] | None) -> Sequence[str]:
    return [str(row) for row in range(len(raw))] if groups is None else groups


def threshold_image(
    raw: FloatArray,
    target: FloatArray,
    level: float,
    confidence: float,
    resamples: int,
    seed: tuple[int, int],
    groups: Sequence[str] | None = None,
) -> ValueWithInterval:
    """Return the raw score that is mapped to ``level``, with its bootstrap interval.

    The map is fitted to each resample. A resample that stays below the level counts as 1, one that is never below it as
    0. The isotonic estimate at a point converges at the cube root of n, for which the bootstrap has no general proof
    (Kosorok 2008, Bootstrapping the Grenander estimator); in simulations the 95 % percentile
    interval covered the true crossing in 91 to 95 % of samples of 200 and of 1,000 texts.

    Args:
        groups: of each text, ``(n,)``; texts of one group are drawn together. By default each text is drawn by itself.
    """
    x, y = fit_knots(raw, target)
    value = crossing(x, y, level)
    if value is None:
        side = "at or above" if y[0] >= level else "below"
        return ValueWithInterval(None, reason=f"calibrated scores are all {side} {level:g}")
    sample = Sample({("", "crossing"): crossing_statistic(raw, target, level)}, _groups(raw, groups))
    drawn = resample_together({"": sample}, resamples, seed)[""]["", "crossing"]
    return ValueWithInterval(value, *percentile_interval(drawn.distribution, confidence, drawn.num_items))


def crossing_statistic(raw: FloatArray, target: FloatArray, level: float) -> CountStatistic:
    """Return the statistic that fits the map to resampled texts and returns its :func:`crossing`.

    Distinct raw scores are sorted once for all resamples.
    """
    from scipy.optimize import isotonic_regression

    distinct, codes = np.unique(raw, return_inverse=True)

    def resampled_crossing(copies_of_texts: FloatArray) -> float:
        copies = np.bincount(codes, weights=copies_of_texts, minlength=len(distinct))
        sums = np.bincount(codes, weights=copies_of_texts * target, minlength=len(distinct))
        is_drawn = copies > 0
        y = isotonic_regression(sums[is_drawn] / copies[is_drawn], weights=copies[is_drawn]).x
        value = crossing(distinct[is_drawn], y, level)
        return value if value is not None else float(y[0] < level)

    return CountStatistic(len(raw), lambda copies: np.array([resampled_crossing(row) for row in copies]))
