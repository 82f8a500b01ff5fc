"""Agreement of two scorers, each figure with its 95 % interval.

    Spearman   rank correlation: Pearson's correlation of the midranks
    Kendall    tau-b: the share of concordant minus that of discordant pairs, corrected for ties
    kappa      Cohen's kappa: agreement beyond chance on which texts reach the threshold

Intervals are bootstrap intervals over texts; texts of one prompt are drawn together where it is known which these are.
A text with a missing score (NaN) is left out and counted. An undefined figure, such as a correlation with a constant,
is None and has a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.stats.agreement import Sample, kendall, mean, resample_together, spearman
from xgray.stats.auc import BoolArray
from xgray.stats.bootstrap import CountStatistic, FloatArray, ValueWithInterval, percentile_interval

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
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: Sequence[int] = (0,),
) -> Agreement:
    """Return the agreement of two scorers' scores of the same texts, both ``(n,)`` with NaN for a missing score.

    Args:
        threshold_a: scores of ``a`` from here on count as toxic.
        threshold_b: the same for ``b``.
        groups: the prompt of each text, ``(n,)``; texts of one prompt are drawn together. By default each text is drawn
            by itself.
        resamples: number of bootstrap resamples, drawn with ``seed``.
    """
    is_complete = ~(np.isnan(a) | np.isnan(b))
    a, b = a[is_complete], b[is_complete]
    num = len(a)
    statistics = {
        "spearman": (spearman(a, b), CONSTANT),
        "kendall": (kendall(a, b), CONSTANT),
        "kappa": (kappa(a >= threshold_a, b >= threshold_b), ONE_SIDE),
        "mean_absolute_difference": (mean(np.abs(a - b)), ""),
    }
    names = np.arange(len(is_complete)).astype(str) if groups is None else np.array(groups, dtype=str)
    intervals = with_intervals(statistics, names[is_complete].tolist(), resamples, seed)
    return Agreement(num=num, num_missing=len(is_complete) - num, **intervals)


def with_intervals(
    statistics: Mapping[str, tuple[CountStatistic, str]], groups: Sequence[str], resamples: int, seed: Sequence[int]
) -> dict[str, ValueWithInterval]:
    """Return statistics of the same texts with their intervals; where one is NaN, no value and the reason.

    Resamples in which it is NaN are left out of the interval, unless they are more than fit into one of its tails.

    Args:
        statistics: by name, each with the reason why it may have no value.
        groups: of each text; texts of one group are drawn together.
    """
    num_groups = len(set(groups))
    if num_groups < 2:
        return {name: ValueWithInterval(None, reason="fewer than two texts") for name in statistics}
    sample = Sample({("", name): statistic for name, (statistic, _) in statistics.items()}, groups)
    found = {}
    for (_, name), drawn in resample_together({"": sample}, resamples, seed)[""].items():
        if np.isnan(drawn.value):
            found[name] = ValueWithInterval(None, reason=statistics[name][1])
            continue
        defined = drawn.distribution[~np.isnan(drawn.distribution)]
        if len(defined) < resamples * (1 + CONFIDENCE) / 2:
            num_undefined = resamples - len(defined)
            reason = f"not defined in {num_undefined} of {resamples} resamples"
            found[name] = ValueWithInterval(drawn.value, reason=reason)
            continue
        found[name] = ValueWithInterval(drawn.value, *percentile_interval(defined, CONFIDENCE, num_groups))
    return found


def kappa(a: BoolArray, b: BoolArray) -> CountStatistic:
    """Return Cohen's kappa (Cohen 1960) of two judgements as a statistic of texts.

    It is NaN if both judgements put all texts into the same class.
    """
    columns = np.stack([np.ones(len(a)), a, b, a == b], axis=1).astype(np.float64)

    def from_counts(copies: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            num, of_a, of_b, same = (copies @ columns).T
            share_a, share_b, observed = of_a / num, of_b / num, same / num
            expected = share_a * share_b + (1 - share_a) * (1 - share_b)
            return np.asarray(np.where(expected < 1, (observed - expected) / (1 - expected), np.nan))

    return CountStatistic(len(a), from_counts)
