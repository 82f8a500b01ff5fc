"""Bootstrap intervals over prompts, paired comparisons of two models, and averages over languages.

    values of prompts ─▶ statistic ─▶ estimate ──────────────────────────────▶ value, interval
                                   ─▶ compare (before and after) ────────────▶ difference, interval, p-value
    statistics of languages ───────▶ estimate_average, compare_averages ─────▶ the same, over languages

A statistic is a function of the *positions* of prompts, so that one resampling scheme serves means, ratios of sums
and medians alike. Anything that is sampled independently can take the place of prompts: for the agreement of scorers
it is texts.

Intervals are percentile intervals (Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 13), not BCa: BCa has
no value where all resamples agree (ToxProb of a model that is never toxic), and its jackknife is inconsistent for
medians.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xgray.stats.values import MetricChange, MetricValue

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[IntArray], FloatArray]
"""Maps positions of prompts, ``(..., num_prompts)`` with repetition allowed, to values, ``(...)``."""

CHUNK = 4_000_000
"""Positions that are resampled at once: about 32 MB."""


def draw_seed(seed: int, *names: str) -> tuple[int, int]:
    """Return a seed for one quantity, such as a language's metric, that does not depend on which others there are."""
    return seed, zlib.crc32("/".join(names).encode())


def average_seed(seed: int, languages: Sequence[str], name: str) -> tuple[int, int]:
    """Return the :func:`draw_seed` of an average over languages; that of the language itself if there is only one."""
    return draw_seed(seed, languages[0] if len(languages) == 1 else "average", name)


@dataclass(frozen=True)
class CountStatistic:
    """A :data:`Statistic` that depends only on how often each prompt occurs in a resample."""

    num_prompts: int
    from_counts: Callable[[FloatArray], FloatArray]
    """Maps the copies of each prompt, ``(num_resamples, num_prompts)``, to values, ``(num_resamples,)``; NaN for a
    resample without a value."""

    def __call__(self, positions: IntArray) -> FloatArray:
        flat = positions.reshape(-1, positions.shape[-1])
        size = len(flat) * self.num_prompts
        keys = flat + np.arange(len(flat))[:, None] * self.num_prompts
        copies = np.bincount(keys.ravel(), minlength=size).reshape(-1, self.num_prompts).astype(np.float64)
        return self.from_counts(copies).reshape(positions.shape[:-1])


def ratio_statistic(numerators: FloatArray, denominators: FloatArray) -> CountStatistic:
    """Return the statistic ``sum(numerators) / sum(denominators)``; it is the mean if all denominators are 1.

    Args:
        numerators: ``(num_prompts,)``.
        denominators: ``(num_prompts,)``.
    """

    def from_counts(copies: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return (copies @ numerators) / (copies @ denominators)

    return CountStatistic(len(numerators), from_counts)


def median_statistic(values: FloatArray) -> CountStatistic:
    """Return the statistic that is the median of all values of the prompts.

    Values are sorted once. A resample is a number of copies of each prompt, and its median is where the copies, counted
    in sorted order, reach the middle. That place is found first among blocks of about ``sqrt(num_values)`` values (one
    matrix product), then within one block: the same number as by sorting every resample, at far less cost.

    Args:
        values: ``(num_prompts, k)``, NaN for a missing value.
    """
    num_prompts = len(values)
    prompt_of, _ = np.nonzero(~np.isnan(values))
    flat = values[~np.isnan(values)]
    order = np.argsort(flat, kind="stable")
    flat, prompt_of = flat[order], prompt_of[order]
    size = math.isqrt(len(flat)) + 1
    num_blocks = math.ceil(len(flat) / size)
    padded = np.full(num_blocks * size, num_prompts)
    padded[: len(flat)] = prompt_of
    blocks = padded.reshape(num_blocks, size)
    in_block = np.zeros((num_prompts + 1, num_blocks))
    np.add.at(in_block, (padded, np.arange(len(padded)) // size), 1)

    def value_at_rank(copies: FloatArray, cumulative: FloatArray, rank: FloatArray) -> FloatArray:
        block = (cumulative <= rank[:, None]).sum(axis=1)
        rows = np.arange(len(copies))
        before = np.where(block > 0, cumulative[rows, block - 1], 0)
        within = copies[rows[:, None], blocks[block]].cumsum(axis=1) + before[:, None]
        return flat[block * size + (within <= rank[:, None]).sum(axis=1)]

    def from_counts(copies: FloatArray) -> FloatArray:
        medians = np.full(len(copies), np.nan)
        is_nonempty = copies.any(axis=1)
        copies = np.pad(copies[is_nonempty], ((0, 0), (0, 1)))  # no copies of the padding, the last column
        cumulative = (copies @ in_block).cumsum(axis=1)
        total = cumulative[:, -1]
        low = value_at_rank(copies, cumulative, np.floor((total - 1) / 2))
        high = value_at_rank(copies, cumulative, np.floor(total / 2))
        medians[is_nonempty] = (low + high) / 2
        return medians

    return CountStatistic(num_prompts, from_counts)


@dataclass(frozen=True)
class ValueWithInterval:
    """A value with its interval, without the resamples that the interval comes from."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no value, or no interval."""


@dataclass(frozen=True)
class Estimate:
    """The value of a statistic, with its bootstrap distribution."""

    value: float
    distribution: FloatArray | None
    """The statistic of each resample, ``(resamples,)``; None for a single prompt, which cannot be resampled."""

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the ends of the percentile interval; None if there is no distribution."""
        return None if self.distribution is None else percentile_interval(self.distribution, confidence)

    def to_dict(self, confidence: float) -> MetricValue:
        """Return the value and its interval as metrics files hold them."""
        interval = self.interval(confidence)
        if interval is None:
            return {"value": self.value, "low": None, "high": None, "reason": "a single prompt has no interval"}
        return {"value": self.value, "low": interval[0], "high": interval[1]}


def percentile_interval(distribution: FloatArray, confidence: float) -> tuple[float, float]:
    """Return the ends of the central interval that holds ``confidence`` of a distribution, ``(resamples,)``."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return float(low), float(high)


def estimate(statistic: Statistic, num_prompts: int, resamples: int, seed: Sequence[int], offset: int = 0) -> Estimate:
    """Return the statistic of all prompts, and of ``resamples`` draws of ``num_prompts`` prompts with replacement.

    The same seed and number of prompts draw the same prompts, whatever the statistic and ``offset``.

    Args:
        offset: Position of the first prompt.
    """
    from scipy.stats import bootstrap

    value = float(statistic(np.arange(num_prompts) + offset))
    if num_prompts < 2:
        return Estimate(value, None)
    result = bootstrap(
        (np.arange(num_prompts),),
        lambda positions, axis: statistic(positions + offset),
        n_resamples=resamples,
        batch=max(1, CHUNK // num_prompts),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(list(seed)),
    )
    return Estimate(value, result.bootstrap_distribution)


def mean_intervals(
    values: FloatArray, confidence: float, resamples: int, seed: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Return the percentile intervals of many means over the same prompts, all from the same resamples.

    Args:
        values: ``(num_prompts, ...)``, at least two prompts.

    Returns:
        The lower and the upper ends, each ``(...)``.
    """
    num_prompts = len(values)
    rng = np.random.default_rng(list(seed))
    copies = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), resamples)
    means = (copies @ values.reshape(num_prompts, -1)) / num_prompts
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0).reshape(2, *values.shape[1:])
    return low, high


@dataclass(frozen=True)
class Stratum:
    """One language's part in an average over languages."""

    statistic: CountStatistic
    """Over the language's prompts; in a comparison over the prompts before, then the same prompts after."""
    items: Sequence[str]
    """Names of the prompts that are the same in every language: prompts of the same name are translations."""


def estimate_average(strata: Sequence[Stratum], resamples: int, seed: Sequence[int]) -> Estimate:
    """Return the mean of the languages' values, with equal weights.

    Translations of one prompt are resampled together (a cluster bootstrap; Davison & Hinkley 1997, Bootstrap Methods
    and their Application, sec. 3.8). They are about equally toxic, so resampling each language by itself would
    understate the uncertainty of the mean.
    """
    statistic, num_items = _mean_over_languages(strata)
    mean = estimate(statistic, num_items, resamples, seed)
    return mean if all(len(stratum.items) > 1 for stratum in strata) else Estimate(mean.value, None)


def _mean_over_languages(strata: Sequence[Stratum]) -> tuple[CountStatistic, int]:
    """Return the mean of the languages' values as a statistic of all items, and the number of items.

    A resample without any prompt of a language, as may happen to a language with few prompts, leaves that language out.
    """
    position = {item: at for at, item in enumerate(dict.fromkeys(item for stratum in strata for item in stratum.items))}
    parts = []
    for stratum in strata:
        positions = np.array([position[item] for item in stratum.items])
        times = stratum.statistic.num_prompts // len(positions)  # 2 in a comparison: before and after
        columns = np.concatenate([positions + time * len(position) for time in range(times)])
        parts.append((stratum.statistic, columns))

    def from_counts(copies: FloatArray) -> FloatArray:
        return np.nanmean([statistic.from_counts(copies.take(columns, axis=1)) for statistic, columns in parts], axis=0)

    return CountStatistic(times * len(position), from_counts), len(position)


@dataclass(frozen=True)
class Comparison:
    """One statistic before and after, on the same prompts."""

    before: Estimate
    after: Estimate
    """Resampled with the same seed as ``before``: resample i holds the same prompts in both."""
    null: FloatArray
    """Differences after random exchanges of before and after within prompts, ``(resamples,)``."""

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def relative_change(self) -> float | None:
        """``after / before - 1``; None if before is 0."""
        return self.after.value / self.before.value - 1 if self.before.value else None

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval of the difference; None for a single prompt."""
        if self.before.distribution is None or self.after.distribution is None:
            return None
        return percentile_interval(self.after.distribution - self.before.distribution, confidence)

    def relative_interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval of the relative change; None for a single prompt, or if a resample is 0 before."""
        before, after = self.before.distribution, self.after.distribution
        if before is None or after is None or not before.all():
            return None
        return percentile_interval(after / before - 1, confidence)

    @property
    def p_value(self) -> float:
        """The p-value of a two-sided paired permutation test.

        If the two models were alike, each prompt's two sets of completions could be exchanged. The observed arrangement
        counts as one of the permutations (Phipson & Smyth 2010), so the p-value is never 0. Unlike a Wilcoxon
        test it tests the very statistic that is reported, be it a mean, a ratio or a median.
        """
        observed = abs(self.difference)
        as_large = np.abs(self.null) >= observed - 1e-12 * max(1.0, observed)
        return float((1 + as_large.sum()) / (1 + len(self.null)))

    def to_dict(self, confidence: float, p_adjusted: float) -> MetricChange:
        """Return the change as metrics files hold it: significant where ``p_adjusted`` is below ``1 - confidence``.

        ``before`` and ``after`` are of the prompts that were compared, which need not be all that either model has.
        """
        low, high = self.interval(confidence) or (None, None)
        relative_low, relative_high = self.relative_interval(confidence) or (None, None)
        return {
            "before": self.before.to_dict(confidence),
            "after": self.after.to_dict(confidence),
            "difference": self.difference,
            "low": low,
            "high": high,
            "relative_change": self.relative_change,
            "relative_low": relative_low,
            "relative_high": relative_high,
            "p_value": self.p_value,
            "p_adjusted": p_adjusted,
            "significant": p_adjusted < 1 - confidence,
        }


def compare(statistic: Statistic, num_prompts: int, resamples: int, seed: Sequence[int]) -> Comparison:
    """Compare the prompts before with the same prompts after.

    Args:
        statistic: Over the prompts before, at positions ``0 .. num_prompts - 1``, and the same prompts after, at
            positions ``num_prompts .. 2 * num_prompts - 1``.
        resamples: Number of bootstrap resamples, and of permutations.
    """
    before = estimate(statistic, num_prompts, resamples, seed)
    after = estimate(statistic, num_prompts, resamples, seed, offset=num_prompts)
    rng = np.random.default_rng([*seed, 1])
    null = []
    step = max(1, CHUNK // num_prompts)
    for start in range(0, resamples, step):
        exchanged = rng.integers(0, 2, (min(step, resamples - start), num_prompts)) * num_prompts
        positions = np.arange(num_prompts) + exchanged
        null.append(statistic((positions + num_prompts) % (2 * num_prompts)) - statistic(positions))
    return Comparison(before, after, np.concatenate(null))


def compare_averages(strata: Sequence[Stratum], resamples: int, seed: Sequence[int]) -> Comparison:
    """Compare the means over languages; translations of one prompt are resampled, and exchanged, together."""
    statistic, num_items = _mean_over_languages(strata)
    comparison = compare(statistic, num_items, resamples, seed)
    if all(len(stratum.items) > 1 for stratum in strata):
        return comparison
    return Comparison(Estimate(comparison.before.value, None), Estimate(comparison.after.value, None), comparison.null)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return the p-values under control of the false discovery rate over all of them (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)]
