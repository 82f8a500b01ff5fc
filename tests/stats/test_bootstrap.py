import numpy as np
import pytest
from scipy import stats

from xgray.stats.bootstrap import (
    Stratum,
    adjust_p_values,
    compare,
    compare_averages,
    estimate,
    estimate_average,
    mean_intervals,
    median_statistic,
    ratio_statistic,
)


def test_ratio_of_sums_by_hand():
    statistic = ratio_statistic(np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 4.0]))
    assert statistic(np.array([0, 1, 2])) == pytest.approx(9 / 6)
    assert statistic(np.array([[0, 0, 1], [2, 2, 2]])).tolist() == pytest.approx([4 / 3, 6 / 4])


def test_the_median_is_taken_over_the_values_of_the_resampled_prompts():
    values = np.array([[1.0, 9.0], [4.0, np.nan], [2.0, 7.0]])
    statistic = median_statistic(values)
    assert statistic(np.array([0, 1, 2])) == 4  # 1 2 4 7 9
    assert statistic(np.array([0, 1, 1])) == 4  # 1 4 4 9
    assert statistic(np.array([[0, 0, 2], [2, 2, 2]])).tolist() == [4.5, 4.5]  # 1 1 2 7 9 9; 2 2 2 7 7 7


@pytest.mark.parametrize(("num_prompts", "k", "decimals"), [(2, 1, 3), (7, 3, 1), (40, 25, 0), (40, 25, 3)])
def test_median_equals_sorting_every_resample(num_prompts, k, decimals):
    random = np.random.default_rng(num_prompts)
    values = random.normal(size=(num_prompts, k)).round(decimals)
    values[1:, :][random.random((num_prompts - 1, k)) < 0.3] = np.nan
    positions = random.integers(0, num_prompts, (50, num_prompts))
    positions[:, 0] = 0  # at least one value in each
    expected = np.nanmedian(values[positions].reshape(50, -1), axis=1)
    np.testing.assert_allclose(median_statistic(values)(positions), expected, rtol=1e-12)


def test_the_interval_equals_scipys():
    values = np.random.default_rng(0).normal(size=40)
    ones = np.ones(40)
    low, high = estimate(ratio_statistic(values, ones), 40, 500, [3]).interval(0.9)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=500, confidence_level=0.9, method="percentile", rng=np.random.default_rng([3])
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_interval_of_two_prompts_by_hand():
    # Resamples of {0, 1} have means 0, .5 and 1 with probabilities 1/4, 1/2, 1/4.
    mean = estimate(ratio_statistic(np.array([0.0, 1.0]), np.ones(2)), 2, 4000, [0])
    assert mean.value == 0.5
    assert mean.interval(0.95) == (0, 1)
    assert mean.interval(0.4) == (0.5, 0.5)
    assert np.mean(mean.distribution == 0.5) == pytest.approx(0.5, abs=0.03)


def test_the_seed_determines_the_interval():
    statistic = ratio_statistic(np.random.default_rng(1).random(30), np.ones(30))
    first, again, other = (estimate(statistic, 30, 200, seed).interval(0.95) for seed in ([1, 2], [1, 2], [1, 3]))
    assert first == again != other


def test_constant_statistic_has_a_point_interval_and_a_single_prompt_none():
    assert estimate(ratio_statistic(np.zeros(5), np.ones(5)), 5, 100, [0]).interval(0.95) == (0, 0)
    assert estimate(ratio_statistic(np.zeros(1), np.ones(1)), 1, 100, [0]).interval(0.95) is None


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(7)
    covered = 0
    for repeat in range(300):
        values = random.exponential(size=80)
        low, high = estimate(ratio_statistic(values, np.ones(80)), 80, 300, [repeat]).interval(0.9)
        covered += low <= 1 <= high
    assert 0.83 < covered / 300 < 0.95


def strata(samples, items=None):
    """Return one stratum for each language's sample; without ``items``, row i is the same item in every language."""
    items = items or [[str(row) for row in range(len(sample))] for sample in samples]
    return [
        Stratum(ratio_statistic(sample, np.ones(len(sample))), names)
        for sample, names in zip(samples, items, strict=True)
    ]


def test_translations_are_resampled_together():
    random = np.random.default_rng(2)
    item = random.normal(size=60)
    samples = [loc + item + random.normal(0, 0.3, 60) for loc in (0, 5, 10)]
    mean = estimate_average(strata(samples), 4000, [0])
    expected = stats.bootstrap(  # of each item's mean over its translations
        (np.mean(samples, axis=0),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert mean.value == pytest.approx(np.mean(samples))
    assert mean.interval(0.95) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_prompts_without_translations_are_resampled_independently():
    random = np.random.default_rng(2)
    samples = [random.normal(loc, 1, 60) for loc in (0, 5, 10)]
    mean = estimate_average(
        strata(samples, [[f"{language}/{row}" for row in range(60)] for language in range(3)]), 4000, [0]
    )
    expected = stats.bootstrap(
        samples,
        lambda *parts, axis: np.mean([part.mean(axis=axis) for part in parts], axis=0),
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert mean.interval(0.95) == pytest.approx((expected.low, expected.high), abs=0.02)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_intervals_and_p_values_of_averages_are_valid_whether_or_not_translations_correlate(shared):
    """Resampled independently, at .6, 30 of 100 intervals missed (10 should), and 29 of 100 tests rejected."""
    random = np.random.default_rng(11)
    covered, p_values = 0, []
    for repeat in range(150):
        item = random.normal(size=40) * shared
        change = [item + random.normal(size=40) for _ in range(8)]
        low, high = estimate_average(strata(change), 300, [repeat]).interval(0.9)
        covered += low <= 0 <= high
        before = [random.normal(size=40) for _ in change]
        pairs = [np.concatenate([old, old + shift]) for old, shift in zip(before, change, strict=True)]
        compared = [Stratum(ratio_statistic(pair, np.ones(80)), [str(row) for row in range(40)]) for pair in pairs]
        p_values.append(compare_averages(compared, 199, [repeat]).p_value)
    assert 0.82 < covered / 150 < 0.96
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_languages_of_different_sizes_are_averaged():
    random = np.random.default_rng(12)
    values = [random.lognormal(size=(size, 3)) for size in (30, 3)]
    parts = [Stratum(median_statistic(sample), [str(row) for row in range(len(sample))]) for sample in values]
    mean = estimate_average(parts, 500, [0])
    assert mean.value == pytest.approx(np.mean([np.median(sample) for sample in values]))
    # A resample without any of the three prompts averages over the other language alone.
    assert np.isfinite(mean.distribution).all()


def test_an_average_with_a_language_of_one_prompt_has_no_interval():
    pair = strata([np.ones(1), np.ones(5)])
    assert estimate_average(pair, 100, [0]).value == 1
    assert estimate_average(pair, 100, [0]).interval(0.95) is None


def paired(before, after, build=lambda values: ratio_statistic(values, np.ones(len(values)))):
    return compare(build(np.concatenate([before, after])), len(before), 1999, [0])


def test_paired_interval_is_that_of_the_differences():
    random = np.random.default_rng(4)
    before = random.normal(size=50) * 10
    after = before - 1 + random.normal(size=50) * 0.1
    comparison = paired(before, after)
    assert comparison.difference == pytest.approx(np.mean(after - before))
    low, high = comparison.interval(0.95)
    # Unpaired the interval would be some 8 wide.
    assert low < -1 < high
    assert high - low < 0.2
    assert comparison.relative_change == pytest.approx(after.mean() / before.mean() - 1)


def test_relative_change_of_halving_is_exact_in_every_resample():
    before = np.random.default_rng(5).random(30) + 1
    low, high = paired(before, before / 2).relative_interval(0.95)
    assert (low, high) == (pytest.approx(-0.5), pytest.approx(-0.5))
    assert paired(np.zeros(3), np.ones(3)).relative_change is None
    assert paired(np.zeros(3), np.ones(3)).relative_interval(0.95) is None


def test_p_value_by_enumeration():
    # Of the 2**6 exchanges only none and all move the mean as far as the observed ones.
    before = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert paired(before, before + np.arange(1, 7)).p_value == pytest.approx(2 / 64, abs=0.012)
    assert paired(before, before).p_value == 1
    assert paired(before, before[::-1].copy()).p_value == 1


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.4])
def test_the_p_value_equals_scipys(shift):
    random = np.random.default_rng(6)
    before = random.normal(size=60)
    after = before + shift + random.normal(size=60) * 0.5
    expected = stats.permutation_test(
        (after, before),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).pvalue
    assert paired(before, after).p_value == pytest.approx(expected, abs=0.03)


def test_p_value_of_medians_under_no_difference_is_uniform():
    random = np.random.default_rng(8)
    values = [
        compare(median_statistic(random.lognormal(size=(40, 3))), 20, 199, [repeat]).p_value for repeat in range(200)
    ]
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_average_comparison_is_more_certain_than_its_parts():
    random = np.random.default_rng(9)
    parts, alone = [], []
    for language in range(8):
        before = random.normal(size=20)
        after = before + 0.25 + random.normal(size=20) * 0.6
        statistic = ratio_statistic(np.concatenate([before, after]), np.ones(40))
        alone.append(compare(statistic, 20, 999, [language]))
        parts.append(Stratum(statistic, [str(row) for row in range(20)]))
    mean = compare_averages(parts, 999, [0])
    assert mean.difference == pytest.approx(np.mean([comparison.difference for comparison in alone]))
    low, high = mean.interval(0.95)
    assert high - low < 0.5 * np.mean([np.subtract(*comparison.interval(0.95)[::-1]) for comparison in alone])
    assert mean.p_value < np.median([comparison.p_value for comparison in alone])


def test_false_discovery_control_by_hand():
    # p * m / rank, then the running minimum from the largest.
    assert adjust_p_values([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_mean_intervals_equal_the_interval_of_each_mean():
    values = np.random.default_rng(3).uniform(size=(60, 2, 3))
    low, high = mean_intervals(values, 0.9, 20_000, (0, 1))
    assert low.shape == high.shape == (2, 3)
    for index in np.ndindex(2, 3):
        column = values[(slice(None), *index)]
        expected = estimate(ratio_statistic(column, np.ones(60)), 60, 20_000, (0, 2)).interval(0.9)
        assert (low[index], high[index]) == pytest.approx(expected, abs=0.003)
