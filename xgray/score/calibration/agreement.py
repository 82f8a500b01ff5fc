"""Agreement of two scorers, or of a scorer with human labels, each figure with its 95 % interval.

    Spearman   rank correlation: Pearson's correlation of the midranks
    Kendall    tau-b: the share of concordant minus that of discordant pairs, corrected for ties
    kappa      Cohen's kappa: agreement beyond chance on which texts reach the threshold
    AUC        the probability that a toxic text scores above a benign one

Intervals are bootstrap intervals over texts, except for the AUC. A text with a missing score (NaN) is left out and
counted. An undefined figure, such as a correlation with a constant, is None and has a reason.
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


@dataclass(frozen=True)
class LabelRow:
    """How well a scorer agrees with human labels in one language."""

    language: str
    num: int
    """Texts with a score."""
    num_toxic: int
    num_missing: int
    auc: ValueWithInterval
    kappa: ValueWithInterval
    """At the threshold .5."""
    threshold: float | None
    """The language's calibrated threshold, if there is one."""
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


def label_rows(
    scores: Mapping[str, FloatArray],
    labels: Mapping[str, BoolArray],
    thresholds: Mapping[str, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[LabelRow]:
    """Return one row for each language, in the order of ``scores``.

    Args:
        scores: by language, ``(n,)`` with NaN for a missing score.
        labels: by language, ``(n,)`` labels of the same texts; true for toxic.
        thresholds: the calibrated thresholds, by language.
    """
    rows = []
    for language, all_scores in scores.items():
        is_present = ~np.isnan(all_scores)
        present, toxic = all_scores[is_present], labels[language][is_present]
        threshold = thresholds.get(language)
        at_half, at_threshold = (
            ValueWithInterval(None, reason="no threshold of its own")
            if level is None
            else estimate_with_interval(
                kappa(present >= level, toxic), len(present), resamples, draw_seed(seed, language), ONE_SIDE
            )
            for level in (THRESHOLD, threshold)
        )
        rows.append(
            LabelRow(
                language=language,
                num=len(present),
                num_toxic=int(toxic.sum()),
                num_missing=int((~is_present).sum()),
                auc=auc_against_labels(present, toxic),
                kappa=at_half,
                threshold=threshold,
                kappa_at_threshold=at_threshold,
            )
        )
    return rows


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


def spearman(a: FloatArray, b: FloatArray) -> Statistic:
    """Return Spearman's rank correlation as a statistic of texts at positions; NaN if one scorer's are all equal."""
    from scipy.stats import rankdata

    def statistic(positions: IntArray) -> FloatArray:
        mean_rank = (positions.shape[-1] + 1) / 2
        first, second = (rankdata(scores[positions], axis=-1) - mean_rank for scores in (a, b))
        norm = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
        return np.asarray((first * second).sum(axis=-1) / norm)

    return statistic


def kendall(a: FloatArray, b: FloatArray) -> Statistic:
    """Return Kendall's tau-b as a statistic of texts at positions; NaN if one scorer's scores are all equal."""
    from scipy.stats import kendalltau

    def statistic(positions: IntArray) -> FloatArray:
        rows = positions.reshape(-1, positions.shape[-1])
        taus = [kendalltau(a[row], b[row], method="asymptotic").statistic for row in rows]
        return np.array(taus).reshape(positions.shape[:-1])

    return statistic


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
