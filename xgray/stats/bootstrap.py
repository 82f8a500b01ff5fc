"""The bootstrap of statistics without a simple error, such as rank correlations: of texts, languages or sentences.

Means, shares, medians and their differences over prompts have the intervals of :mod:`xgray.stats.intervals`.

A statistic is a function of the *positions* of texts, or of the number of copies of each, so that one resampling scheme
serves all. Ends of intervals are quantiles of the resamples (Efron & Tibshirani 1993, An Introduction to the Bootstrap,
ch. 13), widened for the number of texts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[IntArray], FloatArray]
"""Maps positions of prompts, ``(..., num_prompts)`` with repetition allowed, to values, ``(...)``."""

CHUNK = 4_000_000
"""Positions that are resampled at once: about 32 MB."""


def draw_seed(seed: int, *names: str) -> tuple[int, int]:
    """Return a seed for one quantity, such as a language's metric, that does not depend on which others there are."""
    return seed, zlib.crc32("/".join(names).encode())


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


def percentile_interval(distribution: FloatArray, confidence: float, num: int | None = None) -> tuple[float, float]:
    """Return the ends of the central interval that holds ``confidence`` of a distribution, ``(resamples,)``.

    Args:
        num: of how many texts, or groups of texts, each resample is. The distribution is narrower than that of samples
            by ``sqrt((num - 1) / num)``, and does not know that its width is an estimate. The interval is widened by
            both (the expanded percentile interval of Hesterberg 2015, The American Statistician 69:371-386).
    """
    tail = (1 - confidence) / 2
    if num is not None and num > 1:
        from scipy.special import ndtr, stdtrit

        tail = float(ndtr(-np.sqrt(num / (num - 1)) * stdtrit(num - 1, 1 - tail)))
    low, high = np.quantile(distribution, [tail, 1 - tail])
    return float(low), float(high)


def estimate(statistic: Statistic, num_prompts: int, resamples: int, seed: Sequence[int]) -> Estimate:
    """Return the statistic of all prompts, and of ``resamples`` draws of ``num_prompts`` prompts with replacement.

    The same seed and number of prompts draw the same prompts, whatever the statistic.
    """
    from scipy.stats import bootstrap

    value = float(statistic(np.arange(num_prompts)))
    if num_prompts < 2:
        return Estimate(value, None)
    result = bootstrap(
        (np.arange(num_prompts),),
        lambda positions, axis: statistic(positions),
        n_resamples=resamples,
        batch=max(1, CHUNK // num_prompts),
        vectorized=True,
        axis=-1,
        method="percentile",
        rng=np.random.default_rng(list(seed)),
    )
    return Estimate(value, result.bootstrap_distribution)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Return the p-values under control of the false discovery rate over all of them (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return [float(p) for p in false_discovery_control(p_values)]
