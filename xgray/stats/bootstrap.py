"""How sure we are: bootstrap intervals over prompts, paired comparisons of two models, many languages at once.

Whatever is drawn independently can stand in the place of prompts; agreement of scorers is drawn over texts.

A statistic is a function of the *positions* of prompts, so that one resampling scheme serves means, ratios of sums
and medians alike. Intervals are percentile intervals (Efron & Tibshirani 1993, ch. 13), not BCa: BCa has no value
where all resamples agree (ToxProb of a model that is never toxic), and its jackknife is inconsistent for medians.
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
"""Positions of prompts, ``(..., num_prompts)`` with repetition allowed, to values, ``(...)``."""

CHUNK = 4_000_000
"""Positions that are resampled at once: about 32 MB."""


def draw_seed(seed: int, *names: str) -> tuple[int, int]:
    """A seed of its own for each thing that is drawn, so that none depends on which others there are."""
    return seed, zlib.crc32("/".join(names).encode())


@dataclass(frozen=True)
class CountStatistic:
    """A :data:`Statistic` that depends on nothing but how often each prompt was drawn."""

    num_prompts: int
    from_counts: Callable[[FloatArray], FloatArray]
    """Copies of each prompt, ``(num_draws, num_prompts)``, to values, ``(num_draws,)``; NaN where there is none."""

    def __call__(self, positions: IntArray) -> FloatArray:
        flat = positions.reshape(-1, positions.shape[-1])
        size = len(flat) * self.num_prompts
        keys = flat + np.arange(len(flat))[:, None] * self.num_prompts
        copies = np.bincount(keys.ravel(), minlength=size).reshape(-1, self.num_prompts).astype(np.float64)
        return self.from_counts(copies).reshape(positions.shape[:-1])


def average_seed(seed: int, languages: Sequence[str], name: str) -> tuple[int, int]:
    """:func:`draw_seed` of an average over languages; that of a single one is drawn as the language itself."""
    return draw_seed(seed, languages[0] if len(languages) == 1 else "average", name)


def ratio_statistic(numerators: FloatArray, denominators: FloatArray) -> CountStatistic:
    """Sum of the numerators over sum of the denominators, both ``(num_prompts,)``; with ones below, a mean."""

    def from_counts(copies: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return (copies @ numerators) / (copies @ denominators)

    return CountStatistic(len(numerators), from_counts)


def median_statistic(values: FloatArray) -> CountStatistic:
    """The median of all values of the prompts, ``(num_prompts, k)`` with NaN for a missing one.

    Values are sorted once; a resample then is a number of copies of each prompt, and its median is where the copies,
    counted in sorted order, reach the middle: first over blocks of about ``sqrt(num_values)`` values (one matrix
    product), then within one block. Far cheaper than sorting every resample, and the same number.
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

    def at_rank(copies: FloatArray, cumulative: FloatArray, rank: FloatArray) -> FloatArray:
        block = (cumulative <= rank[:, None]).sum(axis=1)
        rows = np.arange(len(copies))
        before = np.where(block > 0, cumulative[rows, block - 1], 0)
        within = copies[rows[:, None], blocks[block]].cumsum(axis=1) + before[:, None]
        return flat[block * size + (within <= rank[:, None]).sum(axis=1)]

    def from_counts(copies: FloatArray) -> FloatArray:
        medians = np.full(len(copies), np.nan)
        drawn = copies.any(axis=1)
        copies = np.pad(copies[drawn], ((0, 0), (0, 1)))  # the last column is for the padding: no copies
        cumulative = (copies @ in_block).cumsum(axis=1)
        total = cumulative[:, -1]
        low = at_rank(copies, cumulative, np.floor((total - 1) / 2))
        high = at_rank(copies, cumulative, np.floor(total / 2))
        medians[drawn] = (low + high) / 2
        return medians

    return CountStatistic(num_prompts, from_counts)


@dataclass(frozen=True)
class Estimate:
    value: float
    distribution: FloatArray | None
    """The statistic of each resample, ``(resamples,)``; None for a single prompt, which says nothing about others."""

    def interval(self, confidence: float) -> tuple[float, float] | None:
        return None if self.distribution is None else percentile_interval(self.distribution, confidence)

    def to_dict(self, confidence: float) -> MetricValue:
        """Return the value and its interval as metrics files hold them."""
        interval = self.interval(confidence)
        if interval is None:
            return {"value": self.value, "low": None, "high": None, "reason": "a single prompt has no interval"}
        return {"value": self.value, "low": interval[0], "high": interval[1]}


@dataclass(frozen=True)
class ValueWithInterval:
    """A value with its interval, as tables and files hold it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no value, or no interval."""


def percentile_interval(distribution: FloatArray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return float(low), float(high)


def estimate(statistic: Statistic, num_prompts: int, resamples: int, seed: Sequence[int], offset: int = 0) -> Estimate:
    """The statistic of all prompts, and of ``resamples`` draws of ``num_prompts`` prompts with replacement.

    The same seed and number of prompts draw the same prompts, whatever the statistic and ``offset``, which is added
    to the positions.
    """
    from scipy.stats import bootstrap

    value = float(statistic(np.arange(num_prompts) + offset))
    if num_prompts < 2:
        return Estimate(value, None)
    drawn = bootstrap(
        (np.arange(num_prompts),),
        lambda positions, axis: statistic(positions + offset),
        n_resamples=resamples,
        batch=max(1, CHUNK // num_prompts),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(list(seed)),
    )
    return Estimate(value, drawn.bootstrap_distribution)


def mean_intervals(
    values: FloatArray, confidence: float, resamples: int, seed: Sequence[int]
) -> tuple[FloatArray, FloatArray]:
    """Ends of the percentile intervals of many means over the same prompts, all from the same draws.

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
    """Over its prompts; in a comparison over those before, and then the same ones after."""
    items: Sequence[str]
    """What each of its prompts is called in every language: prompts of one name are translations of each other."""


def estimate_average(strata: Sequence[Stratum], resamples: int, seed: Sequence[int]) -> Estimate:
    """The mean of the languages' values, each counting the same.

    Translations of one prompt are drawn together (a cluster bootstrap; Davison & Hinkley 1997, 3.8): they are about as
    toxic as each other, so that languages drawn by themselves would look surer of their mean than they are.
    """
    statistic, num_items = _over_languages(strata)
    found = estimate(statistic, num_items, resamples, seed)
    return found if all(len(one.items) > 1 for one in strata) else Estimate(found.value, None)


def _over_languages(strata: Sequence[Stratum]) -> tuple[CountStatistic, int]:
    """The mean of the languages' values as a statistic of all items, and how many those are.

    A draw that has none of a language's prompts, as may happen to one with few of them, is one without it.
    """
    place = {item: at for at, item in enumerate(dict.fromkeys(item for one in strata for item in one.items))}
    parts = []
    for one in strata:
        own = np.array([place[item] for item in one.items])
        times = one.statistic.num_prompts // len(own)  # 2 in a comparison: before and after
        parts.append((one.statistic, np.concatenate([own + time * len(place) for time in range(times)])))

    def from_counts(copies: FloatArray) -> FloatArray:
        return np.nanmean([statistic.from_counts(copies.take(own, axis=1)) for statistic, own in parts], axis=0)

    return CountStatistic(times * len(place), from_counts), len(place)


@dataclass(frozen=True)
class Comparison:
    """One statistic before and after, on the same prompts."""

    before: Estimate
    after: Estimate
    """Drawn with the same seed as ``before``: resample i holds the same prompts in both."""
    null: FloatArray
    """Differences after random exchanges of before and after within prompts, ``(resamples,)``."""

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def relative_change(self) -> float | None:
        """``after / before - 1``; None where before is 0."""
        return self.after.value / self.before.value - 1 if self.before.value else None

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Of the difference."""
        if self.before.distribution is None or self.after.distribution is None:
            return None
        return percentile_interval(self.after.distribution - self.before.distribution, confidence)

    def relative_interval(self, confidence: float) -> tuple[float, float] | None:
        """Of the relative change; None also where a resample has 0 before."""
        before, after = self.before.distribution, self.after.distribution
        if before is None or after is None or not before.all():
            return None
        return percentile_interval(after / before - 1, confidence)

    @property
    def p_value(self) -> float:
        """Two-sided paired permutation test: were the models alike, each prompt's two sets of completions could be
        exchanged. With the observed arrangement counted in (Phipson & Smyth 2010), so it is never 0. Unlike a
        Wilcoxon test it tests the very statistic that is reported, be it a mean, a ratio or a median.
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
    """Compare prompts before, at positions ``0 .. num_prompts - 1``, with the same prompts after, from there on."""
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
    """The comparison of the macro averages; translations of one prompt are drawn, and exchanged, together."""
    statistic, num_items = _over_languages(strata)
    found = compare(statistic, num_items, resamples, seed)
    if all(len(one.items) > 1 for one in strata):
        return found
    return Comparison(Estimate(found.before.value, None), Estimate(found.after.value, None), found.null)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """The p-values under false-discovery control over all of them (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)]
