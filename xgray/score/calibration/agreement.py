"""How far two scorers agree, or one scorer with human labels, each figure with its 95 % interval.

    Spearman   rank correlation: Pearson's of the midranks
    Kendall    tau-b: concordant less discordant pairs, corrected for ties
    kappa      Cohen's: agreement on which texts reach the threshold, beyond chance
    AUC        that a toxic text scores above a benign one

Intervals are bootstrap intervals over texts, but for the AUC's. A missing score (NaN) takes its text out, and is
counted. What is not defined, as a correlation with a constant, is None with the reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.stats.auc import BoolArray, auc_against_labels
from xgray.stats.bootstrap import (
    FloatArray,
    IntArray,
    Statistic,
    ValueWithInterval,
    draw_seed,
    estimate,
    percentile_interval,
)

CONFIDENCE = 0.95
RESAMPLES = 1000
THRESHOLD = 0.5
"""A text at or above it counts as toxic, unless the caller has a better one."""
CONSTANT = "all scores of one of the two are equal"
ONE_SIDE = "both put every text on the same side of the threshold"


@dataclass(frozen=True)
class Agreement:
    num: int
    """Texts with both scores."""
    num_missing: int
    spearman: ValueWithInterval
    kendall: ValueWithInterval
    kappa: ValueWithInterval
    mean_absolute_difference: ValueWithInterval


@dataclass(frozen=True)
class LabelRow:
    """A scorer against human labels in one language."""

    language: str
    num: int
    """Texts with a score."""
    num_toxic: int
    num_missing: int
    auc: ValueWithInterval
    kappa: ValueWithInterval
    """At the threshold .5."""
    threshold: float | None
    """The language's own, where there is one."""
    kappa_at_threshold: ValueWithInterval


def agreement(
    a: FloatArray,
    b: FloatArray,
    threshold_a: float = THRESHOLD,
    threshold_b: float = THRESHOLD,
    *,
    resamples: int = RESAMPLES,
    seed: Sequence[int] = (0,),
) -> Agreement:
    """The agreement of two scorers' scores of the same texts, both ``(n,)`` with NaN for a missing score."""
    both = ~(np.isnan(a) | np.isnan(b))
    a, b = a[both], b[both]
    num = len(a)

    def drawn(statistic: Statistic, reason: str) -> ValueWithInterval:
        return measured(statistic, num, resamples, seed, reason)

    return Agreement(
        num=num,
        num_missing=len(both) - num,
        spearman=drawn(spearman(a, b), CONSTANT),
        kendall=drawn(kendall(a, b), CONSTANT),
        kappa=drawn(kappa(a >= threshold_a, b >= threshold_b), ONE_SIDE),
        mean_absolute_difference=drawn(lambda positions: np.abs(a - b)[positions].mean(axis=-1), ""),
    )


def label_rows(
    scores: Mapping[str, FloatArray],
    labels: Mapping[str, BoolArray],
    thresholds: Mapping[str, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[LabelRow]:
    """A row for each language, in the order of ``scores``.

    Args:
        scores: by language, ``(n,)`` with NaN for a missing score.
        labels: by language, ``(n,)``, of the same texts; true for toxic.
        thresholds: of the languages that have one of their own, as a calibration gives it.
    """
    rows = []
    for language, all_scores in scores.items():
        present = ~np.isnan(all_scores)
        own, toxic = all_scores[present], labels[language][present]
        threshold = thresholds.get(language)
        at_half, at_threshold = (
            ValueWithInterval(None, reason="no threshold of its own")
            if one is None
            else measured(kappa(own >= one, toxic), len(own), resamples, draw_seed(seed, language), ONE_SIDE)
            for one in (THRESHOLD, threshold)
        )
        rows.append(
            LabelRow(
                language=language,
                num=len(own),
                num_toxic=int(toxic.sum()),
                num_missing=int((~present).sum()),
                auc=auc_against_labels(own, toxic),
                kappa=at_half,
                threshold=threshold,
                kappa_at_threshold=at_threshold,
            )
        )
    return rows


def measured(statistic: Statistic, num: int, resamples: int, seed: Sequence[int], reason: str) -> ValueWithInterval:
    """A statistic of ``num`` texts with its interval; where it is NaN it has no value for ``reason``.

    Resamples in which it is NaN are left out of the interval, unless they are more than fit into one tail.
    """
    if num < 2:
        return ValueWithInterval(None, reason="fewer than two texts")
    from scipy.stats import DegenerateDataWarning

    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # SciPy has no interval where one is NaN
        one = estimate(statistic, num, resamples, seed)
    if np.isnan(one.value) or one.distribution is None:
        return ValueWithInterval(None, reason=reason)
    defined = one.distribution[~np.isnan(one.distribution)]
    if len(defined) < resamples * (1 + CONFIDENCE) / 2:
        return ValueWithInterval(
            one.value, reason=f"not defined in {resamples - len(defined)} of {resamples} resamples"
        )
    return ValueWithInterval(one.value, *percentile_interval(defined, CONFIDENCE))


def spearman(a: FloatArray, b: FloatArray) -> Statistic:
    """Of texts at positions; NaN where one is constant.

    Ranks of a resample are counted, not sorted: each distinct score holds as many ranks as it was drawn times.
    """
    ranked = [np.unique(one, return_inverse=True) for one in (a, b)]

    def statistic(positions: IntArray) -> FloatArray:
        rows = positions.reshape(-1, positions.shape[-1])
        first, second = (_midranks(codes[rows], len(distinct)) - (rows.shape[1] + 1) / 2 for distinct, codes in ranked)
        spread = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
        return ((first * second).sum(axis=1) / spread).reshape(positions.shape[:-1])

    return statistic


def _midranks(codes: IntArray, num_codes: int) -> FloatArray:
    """The ranks, from 1, within each row of ``(rows, n)`` codes; equal ones share their mean rank."""
    keys = codes + np.arange(len(codes))[:, None] * num_codes
    copies = np.bincount(keys.ravel(), minlength=len(codes) * num_codes).reshape(len(codes), num_codes)
    return np.take_along_axis(copies.cumsum(axis=1) - (copies - 1) / 2, codes, axis=1)


def kendall(a: FloatArray, b: FloatArray) -> Statistic:
    """Tau-b of texts at positions; NaN where one is constant."""
    from scipy.stats import kendalltau

    def statistic(positions: IntArray) -> FloatArray:
        rows = positions.reshape(-1, positions.shape[-1])
        found = [kendalltau(a[row], b[row], method="asymptotic").statistic for row in rows]
        return np.array(found).reshape(positions.shape[:-1])

    return statistic


def kappa(a: BoolArray, b: BoolArray) -> Statistic:
    """Cohen's kappa of two judgements of texts at positions (Cohen 1960); NaN where all fall into one class."""

    def statistic(positions: IntArray) -> FloatArray:
        first, second = a[positions], b[positions]
        share_a, share_b = first.mean(axis=-1), second.mean(axis=-1)
        observed = (first == second).mean(axis=-1)
        expected = share_a * share_b + (1 - share_a) * (1 - share_b)
        return np.asarray((observed - expected) / (1 - expected))

    return statistic
