"""Isotonic regression of one scorer's scores on another's: the map, its worth out of fold, the threshold's image.

Arrays are ``(n,)`` float64 in [0, 1], without missing values: ``raw`` scores and the ``target`` they are mapped to.
"""

from __future__ import annotations

import numpy as np

from xgray.stats.bootstrap import FloatArray, IntArray, Statistic, ValueWithInterval, estimate, percentile_interval

NUM_FOLDS = 5


def fit_knots(raw: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The non-decreasing map with the least squared error, as its knots: raw scores ascending, and their images."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, target)
    return fitted.X_thresholds_, fitted.y_thresholds_


def interpolate(raw: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """The images of raw scores: linear between knots, outside of them that of the nearest."""
    return np.clip(np.interp(raw, x, y), y[0], y[-1])  # interpolation may round beyond a knot


def predict_out_of_fold(raw: FloatArray, target: FloatArray) -> FloatArray:
    """Each raw score as the map that the other folds give has it; text i belongs to fold ``i % 5``."""
    fold = np.arange(len(raw)) % NUM_FOLDS
    mapped = np.empty(len(raw))
    for held_out in range(NUM_FOLDS):
        inside = fold == held_out
        mapped[inside] = interpolate(raw[inside], *fit_knots(raw[~inside], target[~inside]))
    return mapped


def crossing(x: FloatArray, y: FloatArray, level: float) -> float | None:
    """The lowest raw score that knots map to ``level``; None where they are all below it, or none is."""
    if y[-1] < level or y[0] >= level:
        return None
    above = int(np.searchsorted(y, level))
    share = (level - y[above - 1]) / (y[above] - y[above - 1])
    return float(x[above - 1] + share * (x[above] - x[above - 1]))


def threshold_image(
    raw: FloatArray, target: FloatArray, level: float, confidence: float, resamples: int, seed: tuple[int, int]
) -> ValueWithInterval:
    """The raw score that is mapped to ``level``, with its bootstrap interval: the map is fitted anew to each resample.

    A resample that stays below the level counts as 1, one that is never below it as 0. The isotonic estimate at a
    point converges at the cube root of n, for which the bootstrap has no general proof (Kosorok 2008); by simulation
    the 95 % percentile interval covered the true crossing in 91 to 95 % of samples of 200 and of 1,000 texts.
    """
    x, y = fit_knots(raw, target)
    value = crossing(x, y, level)
    if value is None:
        side = "at or above" if y[0] >= level else "below"
        return ValueWithInterval(None, reason=f"calibrated scores are all {side} {level:g}")
    drawn = estimate(crossing_statistic(raw, target, level), len(raw), resamples, seed).distribution
    assert drawn is not None  # there is more than one text on either side of the level
    return ValueWithInterval(value, *percentile_interval(drawn, confidence))


def crossing_statistic(raw: FloatArray, target: FloatArray, level: float) -> Statistic:
    """The crossing of the map fitted to texts at positions; distinct raw scores are sorted once for all resamples."""
    from scipy.optimize import isotonic_regression

    distinct, codes = np.unique(raw, return_inverse=True)

    def one(row: IntArray) -> float:
        copies = np.bincount(codes[row], minlength=len(distinct))
        sums = np.bincount(codes[row], weights=target[row], minlength=len(distinct))
        drawn = copies > 0
        y = isotonic_regression(sums[drawn] / copies[drawn], weights=copies[drawn]).x
        found = crossing(distinct[drawn], y, level)
        return found if found is not None else float(y[0] < level)

    def statistic(positions: IntArray) -> FloatArray:
        rows = positions.reshape(-1, positions.shape[-1])
        return np.array([one(row) for row in rows]).reshape(positions.shape[:-1])

    return statistic
