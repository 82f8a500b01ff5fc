"""How sure we are: bootstrap intervals over prompts, paired comparisons of two models, many languages at once.

Whatever is drawn independently can stand in the place of prompts; agreement of scorers is drawn over texts.

A statistic is a function of the *positions* of prompts, so that one resampling scheme serves means, ratios of sums
and medians alike. Intervals are percentile intervals (Efron & Tibshirani 1993, ch. 13), not BCa: BCa has no value
where all resamples agree (ToxProb of a model that is never toxic), its jackknife is inconsistent for medians, and
the average over languages is made of the languages' own distributions, which have no common jackknife.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[IntArray], FloatArray]
"""Positions of prompts, ``(..., num_prompts)`` with repetition allowed, to values, ``(...)``."""

CHUNK = 4_000_000
"""Positions that are resampled at once: about 32 MB."""


def draw_seed(seed: int, *names: str) -> tuple[int, int]:
    """A seed of its own for each thing that is drawn, so that none depends on which others there are."""
    return seed, zlib.crc32("/".join(names).encode())


def ratio(numerators: FloatArray, denominators: FloatArray) -> Statistic:
    """Sum of the numerators over sum of the denominators, both ``(num_prompts,)``; with ones below, a mean."""

    def statistic(positions: IntArray) -> FloatArray:
        return numerators[positions].sum(axis=-1) / denominators[positions].sum(axis=-1)

    return statistic


def median(values: FloatArray) -> Statistic:
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

    def statistic(positions: IntArray) -> FloatArray:
        flat_positions = positions.reshape(-1, positions.shape[-1])
        num_rows, width = len(flat_positions), num_prompts + 1  # the last column is for the padding: no copies
        keys = flat_positions + np.arange(num_rows)[:, None] * width
        copies = np.bincount(keys.ravel(), minlength=num_rows * width).reshape(num_rows, width).astype(float)
        cumulative = (copies @ in_block).cumsum(axis=1)
        total = cumulative[:, -1]
        low = at_rank(copies, cumulative, np.floor((total - 1) / 2))
        high = at_rank(copies, cumulative, np.floor(total / 2))
        return ((low + high) / 2).reshape(positions.shape[:-1])

    return statistic


@dataclass(frozen=True)
class Estimate:
    value: float
    distribution: FloatArray | None
    """The statistic of each resample, ``(resamples,)``; None for a single prompt, which says nothing about others."""

    def interval(self, confidence: float) -> tuple[float, float] | None:
        return None if self.distribution is None else percentile_interval(self.distribution, confidence)

    def told(self, confidence: float) -> dict[str, Any]:
        """As metrics files hold it."""
        interval = self.interval(confidence)
        if interval is None:
            return {"value": self.value, "low": None, "high": None, "reason": "a single prompt has no interval"}
        return {"value": self.value, "low": interval[0], "high": interval[1]}


@dataclass(frozen=True)
class Measured:
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


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of the languages' values, each language resampled within itself (a stratified bootstrap).

    The languages' distributions must have been drawn with different seeds. Prompts are taken as independent between
    languages.
    """
    distributions = [one.distribution for one in estimates if one.distribution is not None]
    complete = len(distributions) == len(estimates)
    return Estimate(
        float(np.mean([one.value for one in estimates])), np.mean(distributions, axis=0) if complete else None
    )


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

    def told(self, confidence: float, p_adjusted: float) -> dict[str, Any]:
        """As metrics files hold it; it is significant where the adjusted p-value is below ``1 - confidence``."""
        low, high = self.interval(confidence) or (None, None)
        relative_low, relative_high = self.relative_interval(confidence) or (None, None)
        return {
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


def average_comparison(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison of the macro averages, exchanges and resamples being independent between languages."""
    return Comparison(
        average([one.before for one in comparisons]),
        average([one.after for one in comparisons]),
        np.mean([one.null for one in comparisons], axis=0),
    )


def adjusted(p_values: Sequence[float]) -> list[float]:
    """The p-values under false-discovery control over all of them (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)]
