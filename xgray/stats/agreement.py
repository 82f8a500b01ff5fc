"""Measures of agreement between scores and ratings of the same texts, as statistics of how often each text is drawn.

    Spearman          Pearson's correlation of the midranks
    Kendall           tau-b: concordant minus discordant pairs, corrected for ties (Kendall 1945)
    AUC               the probability that a text of the upper class scores above one of the lower (Mann & Whitney 1947)
    weighted kappa    Cohen's kappa with quadratic weights (Cohen 1968)

Each is a :class:`~xgray.stats.bootstrap.CountStatistic`: texts are sorted once, and a resample is the number of copies
of each text, so that a thousand resamples cost a few matrix operations. A resample in which a measure is not defined,
such as a correlation with a constant, has the value NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.stats.auc import BoolArray
from xgray.stats.bootstrap import CHUNK, CountStatistic, FloatArray, IntArray


@dataclass(frozen=True)
class _Groups:
    """Texts in groups of equal values, in ascending order of the values."""

    order: IntArray
    """The texts, sorted, ``(n,)``."""
    starts: IntArray
    """Where each group begins in that order, ``(num_groups,)``."""
    group: IntArray
    """The group of each text, ``(n,)``."""

    @classmethod
    def of(cls, values: FloatArray) -> _Groups:
        distinct, group = np.unique(values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        return cls(order, np.searchsorted(group[order], np.arange(len(distinct))), group)

    def sums(self, copies: FloatArray) -> FloatArray:
        """Return the number of copies in each group, ``(num_resamples, num_groups)``."""
        return np.add.reduceat(copies[:, self.order], self.starts, axis=1)

    def midranks(self, copies: FloatArray) -> FloatArray:
        """Return the midrank of each text less one half, ``(num_resamples, n)``."""
        sums = self.sums(copies)
        return np.asarray((sums.cumsum(axis=1) - sums / 2)[:, self.group])


def spearman(a: FloatArray, b: FloatArray) -> CountStatistic:
    """Return Spearman's rank correlation of ``(n,)`` values; NaN where all values of one side are equal."""
    groups = _Groups.of(a), _Groups.of(b)

    def from_counts(copies: FloatArray) -> FloatArray:
        mean_rank = copies.sum(axis=1, keepdims=True) / 2
        first, second = (sides.midranks(copies) - mean_rank for sides in groups)
        weighted = copies * first
        covariance = np.einsum("ij,ij->i", weighted, second)
        variances = np.einsum("ij,ij->i", weighted, first) * np.einsum("ij,ij,ij->i", copies, second, second)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(variances > 0, covariance / np.sqrt(variances), np.nan)

    return CountStatistic(len(a), from_counts)


def kendall(a: FloatArray, b: FloatArray) -> CountStatistic:
    """Return Kendall's tau-b of ``(n,)`` values; NaN where all values of one side are equal.

    The side with fewer distinct values is gone through value by value, which costs ``n`` for each of them.
    """
    few, many = sorted((_Groups.of(a), _Groups.of(b)), key=lambda sides: len(sides.starts))

    def from_counts(copies: FloatArray) -> FloatArray:
        surplus = _concordant_minus_discordant(few, many, copies)
        num_pairs = _pairs(copies.sum(axis=1))
        tied = [_pairs(sides.sums(copies)).sum(axis=1) for sides in (few, many)]
        untied = (num_pairs - tied[0]) * (num_pairs - tied[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(untied > 0, surplus / np.sqrt(untied), np.nan)

    return CountStatistic(len(a), from_counts)


def _pairs(counts: FloatArray) -> FloatArray:
    return counts * (counts - 1) / 2


def _concordant_minus_discordant(few: _Groups, many: _Groups, copies: FloatArray) -> FloatArray:
    """Return the number of concordant less that of discordant pairs, ``(num_resamples,)``."""
    num_groups = len(many.starts)
    lower = np.zeros(
        (len(copies), num_groups)
    )  # copies of the texts with a lower value of ``few``, by group of ``many``
    surplus = np.zeros(len(copies))
    for start, end in zip(few.starts, [*few.starts[1:], len(few.order)], strict=True):
        texts = few.order[start:end]
        texts = texts[np.argsort(many.group[texts], kind="stable")]
        present, first = np.unique(many.group[texts], return_index=True)
        sums = np.add.reduceat(copies[:, texts], first, axis=1)
        if start:
            up_to = lower.cumsum(axis=1)
            below_minus_above = 2 * up_to[:, present] - lower[:, present] - up_to[:, -1:]
            surplus += np.einsum("ij,ij->i", sums, below_minus_above)
        lower[:, present] += sums
    return surplus


def auc(scores: FloatArray, is_upper: BoolArray, is_lower: BoolArray) -> CountStatistic:
    """Return the AUC between two classes of ``(n,)`` texts; NaN where one of them is empty.

    Args:
        scores: higher is expected of the upper class.
        is_upper: the texts of the upper class.
        is_lower: those of the lower class; texts of neither are left out.
    """
    members = np.flatnonzero(is_upper | is_lower)
    groups = _Groups.of(scores[members])
    upper = is_upper[members].astype(np.float64)

    def from_counts(copies: FloatArray) -> FloatArray:
        copies = copies[:, members]
        uppers, lowers = groups.sums(copies * upper), groups.sums(copies * (1 - upper))
        above = np.einsum("ij,ij->i", uppers, lowers.cumsum(axis=1) - lowers / 2)
        num_pairs = uppers.sum(axis=1) * lowers.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(num_pairs > 0, above / num_pairs, np.nan)

    if not len(members):
        return CountStatistic(len(scores), lambda copies: np.full(len(copies), np.nan))
    return CountStatistic(len(scores), from_counts)


def quadratic_kappa(a: FloatArray, b: FloatArray) -> CountStatistic:
    """Return Cohen's kappa with quadratic weights of ``(n,)`` points of one scale; NaN where all points are equal.

    With quadratic weights the disagreements are mean squared differences: the observed one, and that of points drawn
    independently, ``E[a^2] + E[b^2] - 2 E[a] E[b]``.
    """
    moments = np.stack([np.ones(len(a)), a, b, a**2 + b**2, (a - b) ** 2], axis=1)

    def from_counts(copies: FloatArray) -> FloatArray:
        num, sum_a, sum_b, squares, differences = (copies @ moments).T
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = squares / num - 2 * sum_a * sum_b / num**2
            return np.where(expected > 1e-12, 1 - differences / num / expected, np.nan)

    return CountStatistic(len(a), from_counts)


def mean(values: FloatArray) -> CountStatistic:
    """Return the mean of ``(n,)`` values; NaN for a resample without any."""

    def from_counts(copies: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return (copies @ values) / copies.sum(axis=1)

    return CountStatistic(len(values), from_counts)


def averaged(parts: Sequence[tuple[CountStatistic, IntArray]], num: int) -> CountStatistic:
    """Return the mean of several statistics, each of some of ``num`` texts; one that is NaN is left out.

    Args:
        parts: each statistic with the positions of its texts.
    """

    def from_counts(copies: FloatArray) -> FloatArray:
        return nan_mean([statistic.from_counts(copies[:, positions]) for statistic, positions in parts])

    return CountStatistic(num, from_counts)


def nan_mean(values: Sequence[FloatArray]) -> FloatArray:
    """Return the mean of equally long arrays without their NaN, and NaN where all are."""
    stacked = np.asarray(values)
    num = (~np.isnan(stacked)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(stacked, axis=0) / np.where(num, num, np.nan))


Name = tuple[str, str]
"""Whose scores are measured, and the measure."""


@dataclass(frozen=True)
class Sample:
    """One language's statistics over its texts."""

    statistics: Mapping[Name, CountStatistic]
    """All over the same texts."""
    items: Sequence[str]
    """The index of each text: texts of the same index, in one language or several, are drawn together."""


@dataclass(frozen=True)
class Resampled:
    """A statistic with its values in resamples."""

    value: float
    """NaN where it is not defined."""
    distribution: FloatArray
    """``(resamples,)``."""
    num_items: int | None = None
    """How many indices, each with all its texts, a resample draws."""


def mean_of_resampled(parts: Sequence[Resampled]) -> Resampled:
    """Return the mean of values that are resampled together, without those that are NaN."""
    return Resampled(
        float(nan_mean([np.array(part.value) for part in parts])),
        nan_mean([part.distribution for part in parts]),
        max((part.num_items for part in parts if part.num_items is not None), default=None),
    )


def resample_together(
    samples: Mapping[str, Sample], resamples: int, seed: Sequence[int]
) -> dict[str, dict[Name, Resampled]]:
    """Return the statistics of each language, all from the same resamples of the items (a cluster bootstrap).

    Translations of one text are about equally hard, so that a mean over languages is more uncertain than independent
    languages would make it (Davison & Hinkley 1997, Bootstrap Methods and their Application, sec. 3.8). With all
    languages from the same resamples, a mean or a difference of resamples is a resample of the mean or the difference.
    """
    position = {
        item: at for at, item in enumerate(dict.fromkeys(i for sample in samples.values() for i in sample.items))
    }
    columns = {code: np.array([position[item] for item in sample.items]) for code, sample in samples.items()}
    num_items = len(position)
    rng = np.random.default_rng(list(seed))
    parts: dict[tuple[str, Name], list[FloatArray]] = {}
    step = max(1, CHUNK // num_items)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, num_items, (min(step, resamples - start), num_items))
        keys = drawn + np.arange(len(drawn))[:, None] * num_items
        copies = np.bincount(keys.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        for code, sample in samples.items():
            of_language = copies[:, columns[code]]
            for name, statistic in sample.statistics.items():
                parts.setdefault((code, name), []).append(statistic.from_counts(of_language))
    return {
        code: {
            name: Resampled(
                float(statistic.from_counts(np.ones((1, len(sample.items))))[0]),
                np.concatenate(parts[code, name]),
                len(set(sample.items)),
            )
            for name, statistic in sample.statistics.items()
        }
        for code, sample in samples.items()
    }
