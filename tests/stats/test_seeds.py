"""Means over seeds: by hand, against the analysis of variance, and by how often their intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import MEASURES, Trainings, over_seeds
from xgray.stats.intervals import Comparison, mean_of, quantile_of
from xgray.stats.seeds import deviation, mean_over_seeds


def trained(num_seeds, num_prompts=30, shift=0.0, seed=0):
    """Values of the same prompts after each training, ``(num_seeds, num_prompts)``, within [0, 1]."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(-1, 1, num_prompts) + shift * rng.normal(size=(num_seeds, 1))
    return 1 / (1 + np.exp(-levels - 0.5 * rng.normal(size=(num_seeds, num_prompts))))


def over(values, kind="real"):
    return mean_over_seeds([mean_of(of_seed, kind) for of_seed in values])


def mean_squares(values):
    """Return the mean squares of prompts, seeds and their interaction in the two-way analysis of variance."""
    num_seeds, num_prompts = values.shape
    of_prompts, of_seeds, mean = values.mean(axis=0), values.mean(axis=1), values.mean()
    rest = values - of_prompts - of_seeds[:, np.newaxis] + mean
    return (
        num_seeds * of_prompts.var(ddof=1),
        num_prompts * of_seeds.var(ddof=1),
        (rest**2).sum() / (num_seeds - 1) / (num_prompts - 1),
    )


def test_by_hand():
    """Seeds of 1 3 and 3 9: means 2 and 6; prompts' means 2 and 6, and what is left is 1 -1 and -1 1."""
    mean = over(np.array([[1.0, 3.0], [3.0, 9.0]]))
    assert mean.value == 4
    assert mean.prompt_variance == pytest.approx(8 / 2)
    assert (mean.seeds.variance, mean.seeds.noise, mean.seeds.df) == pytest.approx((8 / 2, 4 / 4, 1))
    assert mean.variance == pytest.approx(4 - 1 + 4)
    low, high = mean.interval(0.95)
    assert (low + high) / 2 == pytest.approx(4)
    assert high - 4 == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(7))
    assert deviation([2.0, 6.0]) == pytest.approx(math.sqrt(8))
    assert deviation([2.0]) is None


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_the_variance_is_that_of_crossed_random_effects(num_seeds):
    values = trained(num_seeds, shift=0.5)
    of_prompts, of_seeds, rest = mean_squares(values)
    assert over(values).variance == pytest.approx((of_prompts + of_seeds - rest) / values.size)


def test_one_seed_is_the_estimate_of_its_prompts():
    for estimate in (mean_of(trained(1)[0]), mean_of(trained(1)[0] > 0.3, "share"), quantile_of(trained(5).T)):
        assert mean_over_seeds([estimate]) is estimate


@pytest.mark.parametrize("kind", ["real", "unit", "share"])
def test_the_order_of_seeds_does_not_matter(kind):
    values = trained(4, shift=0.5)
    values = (values > 0.3).astype(float) if kind == "share" else values
    assert over(values[::-1], kind).interval(0.95) == pytest.approx(over(values, kind).interval(0.95))


def test_equal_seeds_leave_the_prompts_alone():
    values = np.repeat(trained(1), 3, axis=0)
    assert over(values).interval(0.95) == pytest.approx(mean_of(values[0], "real").interval(0.95))


def test_seeds_without_different_prompts_have_students_interval():
    """All prompts are alike, so that only the seeds differ."""
    values = np.repeat(np.array([[0.2], [0.3], [0.5]]), 20, axis=1)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert over(values).interval(0.95) == pytest.approx((expected.low, expected.high))


def test_more_different_seeds_widen_the_interval():
    widths = [float(np.ptp(over(trained(3, shift=shift), "unit").interval(0.95))) for shift in (0.0, 0.5, 2.0)]
    assert widths == sorted(widths)
    assert widths[2] > 2 * widths[0]


@pytest.mark.parametrize("kind", ["real", "unit", "share"])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_interval_relative_interval_and_test_agree_over_seeds(kind, shift):
    for seed in range(20):
        values = np.concatenate([trained(1, seed=seed), trained(3, shift=shift, seed=seed)])
        values = (values > 0.25).astype(float) if kind == "share" else values
        change = Comparison(mean_of(values[0], kind), over(values[1:], kind))
        low, high = change.interval(0.95)
        relative = change.relative_interval(0.95)
        is_significant = change.p_value < 0.05
        assert (low > 0 or high < 0) == is_significant
        if relative is not None:
            assert (relative[0] > 0 or relative[1] < 0) == is_significant
        low, high = change.interval(1 - change.p_value)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)


def test_a_difference_takes_the_prompts_in_pairs():
    """Before and after differ by a constant for each seed: only the seeds make the difference uncertain."""
    before = trained(1)[0]
    change = Comparison(mean_of(before, "real"), over(before + np.array([[0.1], [0.2], [0.6]])))
    expected = stats.ttest_1samp([0.1, 0.2, 0.6], 0)
    interval = expected.confidence_interval(0.95)
    assert change.interval(0.95) == pytest.approx((interval.low, interval.high))
    assert change.p_value == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("name", "num_prompts"), [("EMT, k = 5", 120), ("PPL, median", 20)])
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_intervals_over_seeds_hold_the_truth(name, num_prompts, num_seeds, shift):
    """By chance alone, a share of .95 of 400 is below .915 once in a thousand times."""
    measure = next(measure for measure in MEASURES if measure.name == name)
    assert min(over_seeds(measure, num_prompts, Trainings(num_seeds, shift), 400)) > 0.915


def test_intervals_over_prompts_alone_do_not_hold_the_truth():
    """What a mean over seeds would claim if the seeds were not counted."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        shifts = 0.3 * rng.normal(size=(3, 1))
        values = rng.normal(size=120) + shifts
        mean = over(values)
        low, high = mean_of(values.mean(axis=0), "real").interval(0.95)
        held += low <= 0 <= high
        assert mean.interval(0.95)[0] < low
    assert held < 0.8 * 300
