"""Agreement of two scorers, each figure with its 95 % interval.

    Spearman   rank correlation: Pearson's correlation of the midranks
    Kendall    tau-b: the share of concordant minus that of discordant pairs, corrected for ties
    kappa      Cohen's kappa: agreement beyond chance on which texts reach the threshold

Intervals are bootstrap intervals over texts. A text with a missing score (NaN) is left out and
counted. An undefined figure, such as a correlation with a constant, is None and has a reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xgray.stats.agreement import kendall, spearman
from xgray.stats.auc import BoolArray
from xgray.stats.bootstrap import (
    FloatArray,
    IntArray,
    Statistic,
    ValueWithInterval,
    estimate,
    percentile_interval,
)

CONFIDENCE = 0.95
RESAMPLES = 1000
THRESHOLD = 0.5
"""A text with this score or a higher one counts as toxic, unless the caller knows a better threshold."""
CONSTANT = "all scores of one of the two are equal"
ONE_SIDE = "both put every text on the same side of the threshold"


@dataclass(frozen=True)
class Agreement:
    """How well two scorers agree on the same texts."""

    num: int
    """Texts with both scores."""
    num_missing: int
    spearman: ValueWithInterval
    kendall: ValueWithInterval
    kappa: ValueWithInterval
    mean_absolute_difference: ValueWithInterval


def agreement(
    a: FloatArray,
    b: FloatArray,
    threshold_a: float = THRESHOLD,
    threshold_b: float = THRESHOLD,
    *,
    resamples: int = RESAMPLES,
    seed: Sequence[int] = (0,),
) -> Agreement:
    """Return the agreement of two scorers' scores of the same texts, both ``(n,)`` with NaN for a missing score.

    Args:
        threshold_a: scores of ``a`` from here on count as toxic.
        threshold_b: the same for ``b``.
        resamples: number of bootstrap resamples, drawn with ``seed``.
    """
    is_complete = ~(np.isnan(a) | np.isnan(b))
    a, b = a[is_complete], b[is_complete]
    num = len(a)

    def with_interval(statistic: Statistic, reason: str) -> ValueWithInterval:
        return estimate_with_interval(statistic, num, resamples, seed, reason)

    return Agreement(
        num=num,
        num_missing=len(is_complete) - num,
        spearman=with_interval(spearman(a, b), CONSTANT),
        kendall=with_interval(kendall(a, b), CONSTANT),
        kappa=with_interval(kappa(a >= threshold_a, b >= threshold_b), ONE_SIDE),
        mean_absolute_difference=with_interval(lambda positions: np.abs(a - b)[positions].mean(axis=-1), ""),
    )


def estimate_with_interval(
    statistic: Statistic, num: int, resamples: int, seed: Sequence[int], reason: str
) -> ValueWithInterval:
    """Return a statistic of ``num`` texts with its interval; if it is NaN, no value and ``reason``.

    Resamples in which it is NaN are left out of the interval, unless they are more than fit into one of its tails.
    """
    if num < 2:
        return ValueWithInterval(None, reason="fewer than two texts")
    from scipy.stats import DegenerateDataWarning

    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # SciPy has no interval if a resample is NaN
        result = estimate(statistic, num, resamples, seed)
    if np.isnan(result.value) or result.distribution is None:
        return ValueWithInterval(None, reason=reason)
    defined = result.distribution[~np.isnan(result.distribution)]
    if len(defined) < resamples * (1 + CONFIDENCE) / 2:
        num_undefined = resamples - len(defined)
        return ValueWithInterval(result.value, reason=f"not defined in {num_undefined} of {resamples} resamples")
    return ValueWithInterval(result.value, *percentile_interval(defined, CONFIDENCE))


def kappa(a: BoolArray, b: BoolArray) -> Statistic:
    """Return Cohen's kappa (Cohen 1960) of two judgements as a statistic of texts at positions.

    It is NaN if both judgements put all texts into the same class.
    """

    def statistic(positions: IntArray) -> FloatArray:
        first, second = a[positions], b[positions]
        share_a, share_b = first.mean(axis=-1), second.mean(axis=-1)
        observed = (first == second).mean(axis=-1)
        expected = share_a * share_b + (1 - share_a) * (1 - share_b)
        return np.asarray((observed - expected) / (1 - expected))

    return statistic
