"""Intervals and tests of values over prompts, of their paired differences, and of averages over languages.

    values of prompts ─▶ ratio_of, quantile_of ──────────▶ Estimate ───▶ value, interval
    estimates of languages ─▶ average_of ────────────────▶ Estimate ───▶ the same, over languages
    estimates before and after, of the same prompts ─────▶ Comparison ─▶ difference, interval, p-value
    estimates of trainings that differ in their seed ────▶ :mod:`xgray.stats.seeds`: an Estimate of their mean

An estimate carries the error that each prompt contributes: its empirical influence times ``sqrt(n / (n - 1))``. The sum
of their squares estimates the variance. Errors are linear: those of a difference, or of a mean over languages, are the
difference or the mean of the errors. Translations of one prompt are one item, whose errors are added before they are
squared, so that what translations have in common is counted (Liang & Zeger 1986, Biometrika 73:13-22).

The variance is an estimate too. Student's t takes the normal distribution's place, with the degrees of freedom that
match the sampling variance of the variance, kurtosis included (Satterthwaite 1946, Biometrics Bulletin 2:110-114). They
are fewer than ``n - 1`` where few prompts make up most of the spread, as where most are near 0.

Nothing is drawn at random. ``benchmarks/coverage.py`` measures how often the intervals hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from xgray.stats.bootstrap import FloatArray
from xgray.stats.values import MetricChange, MetricValue

Kind = Literal["share", "unit", "real"]
"""What a statistic is a mean of: ``share`` of 0 or 1 a prompt, ``unit`` of values in [0, 1], ``real`` of any."""

POWER = 0.8
"""The probability with which a change of the minimum detectable size is found."""
LEAST_P = 1e-12
"""A p-value over seeds is not computed any smaller."""
NO_SPREAD = 1e-20
"""A variance up to here is rounding."""
SLOPE_CONFIDENCE = 0.95
"""The interval from which the density of values at a quantile is read."""


@dataclass(frozen=True)
class SeedVariance:
    """What the choice of the seeds adds to the variance of a mean over trainings; see :mod:`xgray.stats.seeds`."""

    variance: float
    """The variance of the mean of so many trainings, from how much their values differ."""
    noise: float
    """The part of it that each prompt's own noise makes, which the prompts' errors hold too."""
    df: int
    """The number of trainings less one."""

    def joined(self, of_prompts: float) -> float:
        """Return the variance from prompts and seeds together, which counts the noise once."""
        return max(0.0, of_prompts - self.noise) + self.variance

    def quantile(self, confidence: float, of_prompts: float, df: float) -> float:
        """Return the mean of the quantiles of Student's t for prompts and seeds, weighted with their variances.

        It stands for the quantile of the sum of two variances that are known differently well (Cochran 1964,
        Biometrics 20:191-195).
        """
        total = self.joined(of_prompts)
        share = self.variance / total if total >= NO_SPREAD else 0.0
        return (1 - share) * student(confidence, df) + share * student(confidence, self.df)


@dataclass(frozen=True)
class Estimate:
    """A value over prompts, or over the items of several languages, with the error that each contributes."""

    value: float
    errors: FloatArray
    """``(num_units,)``: their sum is 0, the sum of their squares is the variance of the value."""
    kind: Kind
    num_prompts: int
    """Prompts of all languages together: the number of units, or more where a unit is an item of several languages."""
    max_df: float
    """The most degrees of freedom that the variance may have; 0 where a language has a single prompt."""
    seeds: SeedVariance | None = field(default=None, kw_only=True)
    """What the seeds add to the variance, where the value is a mean over trainings."""

    @property
    def prompt_variance(self) -> float:
        """The variance that the choice of the prompts makes."""
        return float(self.errors @ self.errors)

    @property
    def variance(self) -> float:
        """The variance of the value."""
        return self.prompt_variance if self.seeds is None else self.seeds.joined(self.prompt_variance)

    def _quantile(self, confidence: float) -> float:
        df = degrees_of_freedom(self.errors, self.max_df)
        if self.seeds is None:
            return student(confidence, df)
        return self.seeds.quantile(confidence, self.prompt_variance, df)

    @property
    def is_average(self) -> bool:
        return self.num_prompts != len(self.errors)

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval; None where a language has a single prompt.

        Means of values in [0, 1] have Wilson's interval with the effective number of prompts, ``p (1 - p) / variance``
        (Korn & Graubard 1998, Survey Methodology 24:193-201): it stays within [0, 1] and reaches farther to the middle.
        Where all prompts are alike, their spread says nothing, and each counts as one that is 0 or 1.
        """
        if not self.max_df:
            return None
        quantile = self._quantile(confidence)
        if self.kind == "real":
            half = quantile * math.sqrt(self.variance)
            return self.value - half, self.value + half
        if self.kind == "share" and not self.is_average:
            return share_interval(self.value, self.num_prompts, confidence)
        if self.variance < NO_SPREAD:
            return wilson_interval(self.value, len(self.errors), quantile)
        return wilson_interval(self.value, self.value * (1 - self.value) / self.variance, quantile)

    def to_dict(self, confidence: float) -> MetricValue:
        """Return the value and its interval as metrics files hold them."""
        interval = self.interval(confidence)
        if interval is None:
            return {"value": self.value, "low": None, "high": None, "reason": "a single prompt has no interval"}
        return {"value": self.value, "low": interval[0], "high": interval[1]}


@dataclass(frozen=True)
class QuantileEstimate(Estimate):
    """A quantile of the values of all prompts."""

    share: float
    """The share of the values that lie below: .5 for the median."""
    share_errors: FloatArray
    """The errors of that share, ``(num_prompts,)``."""
    ordered: FloatArray = field(repr=False)
    """All values in ascending order."""

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval; None for a single prompt.

        Its ends are the quantiles at the ends of the interval of the share (Woodruff 1952, JASA 47:635-646).
        """
        if not self.max_df:
            return None
        ends = _share_ends(self.share, self.share_errors, confidence)
        low, high = _at_shares(self.ordered, ends)
        return float(low), float(high)


def ratio_of(numerators: FloatArray, denominators: FloatArray, kind: Kind = "unit") -> Estimate:
    """Return ``sum(numerators) / sum(denominators)``; it is the mean if all denominators are 1.

    Args:
        numerators: ``(num_prompts,)``.
        denominators: ``(num_prompts,)``.
        kind: ``share`` only where numerators are 0 or 1 and denominators 1.
    """
    num, total = len(numerators), float(denominators.sum())
    value = float(numerators.sum() / total)
    influence = (numerators - value * denominators) / total
    return Estimate(value, influence * _correction(num), kind, num, num - 1)


def mean_of(values: FloatArray, kind: Kind = "unit") -> Estimate:
    """Return the mean of ``(num_prompts,)`` values."""
    return ratio_of(values, np.ones(len(values)), kind)


def quantile_of(values: FloatArray, share: float = 0.5) -> QuantileEstimate:
    """Return a quantile of all values of the prompts, by default the median.

    Args:
        values: ``(num_prompts, k)``, NaN for a missing value; every prompt has one.
        share: the share of the values below the quantile.
    """
    num, present = len(values), ~np.isnan(values)
    ordered = np.sort(values[present])
    value = float(np.median(ordered) if share == 0.5 else np.quantile(ordered, share))
    below = np.where(present, (values < value) + 0.5 * (values == value), 0.0).sum(axis=1)
    counts = present.sum(axis=1)
    share_errors = (below - below.sum() / counts.sum() * counts) / counts.sum() * _correction(num)
    # Values of one prompt do not vary less than values of as many prompts would.
    least = share * (1 - share) / counts.sum()
    if 0 < (variance := float(share_errors @ share_errors)) < least:
        share_errors = share_errors * math.sqrt(least / variance)
    slope = 0.0
    if num > 1:
        ends = _share_ends(share, share_errors, SLOPE_CONFIDENCE)
        low, high = _at_shares(ordered, ends)
        slope = float(high - low) / (ends[1] - ends[0])
    return QuantileEstimate(value, -slope * share_errors, "real", num, num - 1, share, share_errors, ordered)


def _share_ends(share: float, errors: FloatArray, confidence: float) -> tuple[float, float]:
    variance = float(errors @ errors)
    effective = share * (1 - share) / variance if variance >= NO_SPREAD else len(errors)
    return wilson_interval(share, effective, student(confidence, degrees_of_freedom(errors, len(errors) - 1)))


def _at_shares(ordered: FloatArray, shares: tuple[float, float]) -> FloatArray:
    """Return the values below which the shares lie; value i of n, counted from 0, stands for ``(i + .5) / n``."""
    places = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return np.interp(shares, places, ordered)


@dataclass(frozen=True)
class Stratum:
    """One language's part in an average over languages."""

    estimate: Estimate
    items: Sequence[str]
    """Names of the prompts that are the same in every language: prompts of the same name are translations."""


def average_of(strata: Sequence[Stratum]) -> Estimate:
    """Return the mean of the languages' values, with equal weights; its units are the items of all languages."""
    position = {item: at for at, item in enumerate(dict.fromkeys(item for stratum in strata for item in stratum.items))}
    errors = np.zeros(len(position))
    for stratum in strata:
        places = np.array([position[item] for item in stratum.items])
        np.add.at(errors, places, stratum.estimate.errors / len(strata))
    estimates = [stratum.estimate for stratum in strata]
    kinds = {estimate.kind for estimate in estimates}
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        errors,
        kinds.pop() if len(kinds) == 1 else "real",
        sum(estimate.num_prompts for estimate in estimates),
        _joint_df(estimates),
    )


def _joint_df(estimates: Sequence[Estimate]) -> float:
    """Return the degrees of freedom of the sum of independent variances; 0 where one of them has none."""
    own = np.array([estimate.max_df for estimate in estimates])
    if not own.all():
        return 0.0
    variances = np.array([estimate.variance for estimate in estimates])
    total = float(variances.sum())
    return total**2 / float((variances**2 / own).sum()) if total >= NO_SPREAD else float(own.sum())


@dataclass(frozen=True)
class Comparison:
    """One statistic before and after, on the same prompts.

    The interval of the difference is that of a paired t-test, and the test's p-value is below .05 exactly where the
    95 % interval excludes 0. Shares have the interval and test of Bonett and Price (2012, J. Educ. Behav. Stat.
    37:479-488): two prompts are added, one that is toxic only before, and one only after. The same holds for other
    means in [0, 1] where no prompt differs from another, whose spread would be 0.
    """

    before: Estimate
    """Of one model."""
    after: Estimate
    """Of the same units, in the same order; it may be a mean over seeds."""

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def relative_change(self) -> float | None:
        """``after / before - 1``; None if before is 0."""
        return self.after.value / self.before.value - 1 if self.before.value else None

    @property
    def has_interval(self) -> bool:
        """Whether every language has the two prompts that an interval needs."""
        return self._max_df > 0

    @property
    def _max_df(self) -> float:
        return min(self.before.max_df, self.after.max_df)

    @property
    def _errors(self) -> FloatArray:
        return self.after.errors - self.before.errors

    @property
    def _df(self) -> float:
        if self.before.kind == "share" and not self.before.is_average:
            return math.inf
        return degrees_of_freedom(self._errors, self._max_df)

    def _moments(self) -> tuple[float, float, float, float, float]:
        """Return the value before and after, their variances over prompts, and their covariance."""
        b, a = self.before.value, self.after.value
        var_b, var_a, covariance = (
            self.before.prompt_variance,
            self.after.prompt_variance,
            float(self.before.errors @ self.after.errors),
        )
        has_spread = var_a + var_b - 2 * covariance >= NO_SPREAD
        if self.before.kind == "real" or (self.before.kind == "unit" and has_spread):
            return b, a, var_b, var_a, covariance
        num, units = self.before.num_prompts, len(self.before.errors)
        scale = num**2 * (1 - 1 / units)  # from variances to sums of squares
        more_b, more_a = (num * b + 1) / (num + 2), (num * a + 1) / (num + 2)

        def enlarged(variance: float, product: float, added: float, mean_product: float) -> float:
            return (scale * variance + num * product + added) / (num + 2) ** 2 - mean_product / (num + 2)

        return (
            more_b,
            more_a,
            enlarged(var_b, b * b, 1, more_b**2),
            enlarged(var_a, a * a, 1, more_a**2),
            enlarged(covariance, a * b, 0, more_a * more_b),
        )

    def _center_and_variance(self) -> tuple[float, float]:
        """Return the middle of the difference's interval, and the variance of the difference over prompts."""
        b, a, var_b, var_a, covariance = self._moments()
        return a - b, max(0.0, var_a + var_b - 2 * covariance)

    def _center_and_error(self) -> tuple[float, float]:
        """Return the middle of the difference's interval, and its standard error."""
        center, variance = self._center_and_variance()
        return center, math.sqrt(variance if self.after.seeds is None else self.after.seeds.joined(variance))

    def _quantile(self, confidence: float) -> float:
        if self.after.seeds is None:
            return student(confidence, self._df)
        return self.after.seeds.quantile(confidence, self._center_and_variance()[1], self._df)

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Return the interval of the difference; None where a language has a single prompt."""
        if not self.has_interval:
            return None
        center, error = self._center_and_error()
        half = self._quantile(confidence) * error
        limit = math.inf if self.before.kind == "real" else 1.0
        return max(-limit, center - half), min(limit, center + half)

    def relative_interval(self, confidence: float) -> tuple[float, float] | None:
        """Return Fieller's interval of the relative change (Fieller 1954, J. R. Stat. Soc. B 16:175-185).

        It excludes 0 exactly where the interval of the difference does. None where it is unbounded, because the value
        before is not distinguishable from 0, and where a language has a single prompt.
        """
        if not self.has_interval:
            return None
        b, a, var_b, var_a, covariance = self._moments()
        if self.after.seeds is not None:  # as much as they add to the variance of the difference
            over_prompts = self._center_and_variance()[1]
            var_a += self.after.seeds.joined(over_prompts) - over_prompts
        square = self._quantile(confidence) ** 2
        below, middle, above = b * b - square * var_b, a * b - square * covariance, a * a - square * var_a
        if below <= 0:
            return None
        half = math.sqrt(max(0.0, middle**2 - below * above))
        low, high = (middle - half) / below - 1, (middle + half) / below - 1
        return (low if self.before.kind == "real" else max(-1.0, low)), high

    @property
    def p_value(self) -> float:
        """The two-sided p-value of the paired test whose confidence intervals :meth:`interval` returns."""
        from scipy.special import stdtr

        if not self.has_interval:
            return 1.0
        center, error = self._center_and_error()
        if error * error < NO_SPREAD:
            return float(abs(center) < math.sqrt(NO_SPREAD))
        if self.after.seeds is not None:
            return self._p_value_over_seeds(abs(center) / error)
        df = self._df
        return float(2 * stdtr(df if df < LARGE_DF else LARGE_DF, -abs(center) / error))

    def _p_value_over_seeds(self, ratio: float) -> float:
        """Return the p-value at which the quantile is the ratio of the difference to its error."""
        from scipy.optimize import brentq

        def excess(logarithm: float) -> float:
            return self._quantile(1 - math.exp(logarithm)) - ratio

        smallest = math.log(LEAST_P)
        return LEAST_P if excess(smallest) <= 0 else math.exp(brentq(excess, smallest, 0.0))

    def detectable(self, confidence: float) -> float | None:
        """Return the least difference that a single test finds with the probability :data:`POWER`, from the spread.

        It is the sum of the quantiles of the test and of the power, times the standard error of the difference (Cohen
        1988, Statistical Power Analysis, ch. 2). None where a language has a single prompt.
        """
        if not self.has_interval:
            return None
        _, error = self._center_and_error()
        return (self._quantile(confidence) + self._quantile(2 * POWER - 1)) * error

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
            "detectable": self.detectable(confidence),
        }


LARGE_DF = 1e9
"""Stands for the normal distribution."""


def student(confidence: float, df: float) -> float:
    """Return the quantile of Student's t at the upper end of a central interval; the normal one for infinite ``df``."""
    from scipy.special import stdtrit

    return float(stdtrit(min(df, LARGE_DF), (1 + confidence) / 2))


def wilson_interval(share: float, num: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of ``num`` (Wilson 1927, JASA 22:209-212); ``num`` may be a fraction."""
    ratio = quantile**2 / num
    center = (share + ratio / 2) / (1 + ratio)
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4) / (1 + ratio)
    return max(0.0, center - half), min(1.0, center + half)


def share_interval(share: float, num: int, confidence: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of ``num``, corrected where all but one to three are on one side.

    Wilson's interval alone covers as little as .84 there; the nearer end is then that of a Poisson distribution (Brown,
    Cai & DasGupta 2001, Statistical Science 16:101-133, sec. 4.1.1).
    """
    from scipy.special import gammaincinv

    low, high = wilson_interval(share, num, student(confidence, math.inf))
    most = 2 if num <= 50 else 3

    def nearest(count: float) -> float:
        return float(gammaincinv(count, 1 - confidence)) / num

    hits = round(share * num, 9)  # a whole number but for rounding
    if 1 <= hits <= most:
        low = min(low, nearest(hits))
    if 1 <= num - hits <= most:
        high = max(high, 1 - nearest(num - hits))
    return low, high


def degrees_of_freedom(errors: FloatArray, max_df: float) -> float:
    """Return the degrees of freedom of the sum of squared errors as an estimate of the variance.

    The variance of a sample variance is ``s^4 (kurtosis / n + 2 / (n - 1))`` with the excess kurtosis, here its
    unbiased estimate (Joanes & Gill 1998, The Statistician 47:183-189); one below the normal distribution's counts as
    0.

    Args:
        errors: ``(n,)``, whose sum is 0.
        max_df: the most to return.
    """
    num, total = len(errors), float(errors @ errors)
    if num < 4 or total < NO_SPREAD:
        return min(max_df, num - 1)
    excess = num * float((errors**2) @ (errors**2)) / total**2 - 3
    unbiased = (num - 1) / ((num - 2) * (num - 3)) * ((num + 1) * excess + 6)
    return min(max_df, 2 / (max(0.0, unbiased) / num + 2 / (num - 1)))


def _correction(num: int) -> float:
    return math.sqrt(num / (num - 1)) if num > 1 else 0.0
