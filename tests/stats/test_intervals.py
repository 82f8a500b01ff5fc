"""Intervals and tests over prompts: by hand, against SciPy, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.coverage import MEASURES, SHARED, Translations, of_average, of_one_language, with_missing_scores
from xgray.stats.intervals import (
    Comparison,
    Stratum,
    average_of,
    mean_of,
    quantile_of,
    ratio_of,
    share_interval,
)

BY_NAME = {measure.name: measure for measure in MEASURES}


def uniform(num, seed=0):
    """Values with shorter tails than the normal distribution's, whose interval is the plain t-interval."""
    return np.random.default_rng(seed).random(num)


def scipys(sample):
    interval = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    return pytest.approx((interval.low, interval.high))


def test_a_mean_without_outliers_has_students_interval():
    assert mean_of(uniform(30), "real").interval(0.95) == scipys(uniform(30))
    with_outlier = np.append(uniform(29), 10.0)
    low, high = mean_of(with_outlier, "real").interval(0.95)
    expected = stats.ttest_1samp(with_outlier, 0).confidence_interval(0.95)
    assert low < expected.low < expected.high < high


@pytest.mark.parametrize(("hits", "num"), [(10, 10), (0, 10), (5, 10), (600, 1000)])
def test_a_share_has_wilsons_interval(hits, num):
    share = mean_of(np.arange(num) < hits, "share")
    expected = stats.binomtest(hits, num).proportion_ci(0.95, method="wilson")
    assert share.interval(0.95) == pytest.approx((expected.low, expected.high))


def test_one_of_ten_has_the_poisson_distributions_lower_end():
    assert mean_of(np.arange(10) < 1, "share").interval(0.95)[0] == pytest.approx(-np.log(0.95) / 10)
    assert share_interval(0.9, 10, 0.95) == pytest.approx(tuple(1 - end for end in share_interval(0.1, 10, 0.95)[::-1]))


@pytest.mark.parametrize("num", [10, 20, 120])
def test_shares_are_covered_exactly_whatever_the_truth(num):
    """Wilson's interval alone has .84 at 10 prompts; the bootstrap had .34 where .04 of the prompts are toxic."""
    truths = np.linspace(0.005, 0.995, 199)[:, None]
    ends = np.array([share_interval(hits / num, num, 0.95) for hits in range(num + 1)])
    is_covered = (ends[:, 0] <= truths) & (truths <= ends[:, 1])
    coverage = (stats.binom.pmf(np.arange(num + 1), num, truths) * is_covered).sum(axis=1)
    assert coverage.min() > 0.915
    assert 0.945 < coverage.mean() < 0.965


def test_means_in_the_unit_interval_stay_there_and_reach_farther_to_the_middle():
    values = np.concatenate([np.full(9, 0.02), [0.6]])
    low, high = mean_of(values).interval(0.95)
    assert 0 < low < values.mean() < high < 1
    assert high - values.mean() > 2 * (values.mean() - low)


def test_prompts_that_are_all_alike_count_as_shares():
    assert mean_of(np.ones(10)).interval(0.95)[0] < 0.8
    assert ratio_of(np.full(10, 4.0), np.full(10, 4.0)).interval(0.95)[1] == pytest.approx(1)


def test_a_ratio_of_sums_by_hand():
    ratio = ratio_of(np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 4.0]), "real")
    assert ratio.value == pytest.approx(9 / 6)
    # Errors are what a prompt's numerator exceeds the ratio's by, over the sum of denominators.
    assert ratio.errors == pytest.approx(np.array([-0.5, 0.5, 0.0]) / 6 * np.sqrt(3 / 2))


def test_quantiles_are_those_of_all_values_and_their_ends_are_values():
    values = np.random.default_rng(1).lognormal(size=(50, 4))
    values[::3, 2:] = np.nan
    median, lower = quantile_of(values), quantile_of(values, 0.25)
    assert median.value == np.nanmedian(values)
    assert lower.value == pytest.approx(np.nanquantile(values, 0.25))
    assert lower.interval(0.95)[1] < median.interval(0.95)[1]
    low, high = median.interval(0.95)
    assert low < median.value < high
    # Intervals of quantiles follow any ascending change of the scale, up to the interpolation between values.
    assert quantile_of(np.log(values)).interval(0.95) == pytest.approx((np.log(low), np.log(high)), abs=0.01)


def test_a_single_prompt_has_no_interval_and_no_significance():
    one = Comparison(mean_of(np.array([0.9])), mean_of(np.array([0.1])))
    assert one.before.interval(0.95) is one.interval(0.95) is one.detectable(0.95) is None
    assert one.p_value == 1
    assert quantile_of(np.array([[1.0, 2.0]])).interval(0.95) is None
    assert (
        average_of([Stratum(one.before, ["0"]), Stratum(mean_of(uniform(9)), list("012345678"))]).interval(0.95) is None
    )


def test_a_difference_has_the_paired_t_test():
    before, change = uniform(40) * 10, uniform(40, 1) - 0.7
    compared = Comparison(mean_of(before, "real"), mean_of(before + change, "real"))
    assert compared.difference == pytest.approx(change.mean())
    assert compared.interval(0.95) == scipys(change)
    assert compared.p_value == pytest.approx(stats.ttest_rel(before + change, before).pvalue)


def test_a_difference_of_shares_by_hand():
    """Bonett and Price: of 10 prompts 6 are toxic only before, so that of 12 the difference is 6, and 8 differ."""
    before, after = np.arange(10) < 6, np.zeros(10)
    compared = Comparison(mean_of(before, "share"), mean_of(after, "share"))
    error = np.sqrt((8 / 12 - 0.5**2) / 12)
    assert compared.interval(0.95) == pytest.approx((-0.5 - 1.96 * error, -0.5 + 1.96 * error), abs=1e-4)
    assert compared.p_value == pytest.approx(2 * stats.norm.sf(0.5 / error))


@pytest.mark.parametrize("kind", ["share", "unit", "real"])
@pytest.mark.parametrize("num_languages", [1, 3])
def test_interval_relative_interval_and_test_agree(kind, num_languages):
    rng, found = np.random.default_rng(3), set()
    for _ in range(150):
        strata = [[], []]
        for _ in range(num_languages):
            before = rng.random(12)
            after = before * rng.uniform(0.6, 1.1) + rng.normal(0, 0.1, 12)
            for side, values in zip(strata, (before, after), strict=True):
                values = values > 0.5 if kind == "share" else np.clip(values, 0, 1)
                side.append(Stratum(mean_of(values, kind), [str(row) for row in range(12)]))
        compared = Comparison(*map(average_of, strata) if num_languages > 1 else (side[0].estimate for side in strata))
        low, high = compared.interval(0.95)
        is_significant = compared.p_value < 0.05
        assert is_significant == (not low <= 0 <= high)
        if (relative := compared.relative_interval(0.95)) is not None:
            assert is_significant == (not relative[0] <= 0 <= relative[1])
        found.add(is_significant)
    assert found == {True, False}


def test_halving_has_a_relative_change_without_spread():
    before = uniform(30) + 1
    compared = Comparison(mean_of(before, "real"), mean_of(before / 2, "real"))
    assert compared.relative_interval(0.95) == (pytest.approx(-0.5), pytest.approx(-0.5))
    nothing = Comparison(mean_of(np.zeros(3)), mean_of(np.ones(3)))
    assert nothing.relative_change is nothing.relative_interval(0.95) is None


def test_swapping_before_and_after_flips_the_difference():
    sides = [mean_of(uniform(15, seed) ** 3) for seed in (0, 1)]
    forth, back = Comparison(*sides), Comparison(*sides[::-1])
    assert forth.interval(0.95) == pytest.approx(tuple(-end for end in back.interval(0.95)[::-1]))
    assert forth.p_value == pytest.approx(back.p_value)


def test_translations_are_one_item_and_other_prompts_are_independent():
    samples = [uniform(60, seed) for seed in range(3)]
    same = [str(row) for row in range(60)]
    together = average_of([Stratum(mean_of(sample, "real"), same) for sample in samples])
    assert together.interval(0.95) == scipys(np.mean(samples, axis=0))
    apart = average_of(
        [Stratum(mean_of(sample, "real"), [f"{at}/{row}" for row in same]) for at, sample in enumerate(samples)]
    )
    error = np.sqrt(sum(sample.var(ddof=1) / 60 for sample in samples)) / 3
    half = stats.t.ppf(0.975, 177) * error
    assert apart.interval(0.95) == pytest.approx((apart.value - half, apart.value + half), rel=1e-3)


def test_an_average_of_one_language_is_that_language():
    for estimate in (mean_of(uniform(9)), mean_of(uniform(9) > 0.5, "share"), mean_of(uniform(9), "real")):
        averaged = average_of([Stratum(estimate, list("012345678"))])
        assert averaged.interval(0.95) == pytest.approx(estimate.interval(0.95))


def test_a_language_of_few_prompts_limits_the_degrees_of_freedom():
    wide = mean_of(uniform(3) * 100, "real")
    many = mean_of(uniform(1000), "real")
    averaged = average_of([Stratum(wide, ["a", "b", "c"]), Stratum(many, [str(row) for row in range(1000)])])
    low, high = averaged.interval(0.95)
    own = wide.interval(0.95)
    assert high - low == pytest.approx((own[1] - own[0]) / 2, rel=0.01)


def test_a_change_of_the_detectable_size_is_found_four_times_in_five():
    rng = np.random.default_rng(5)
    size = float(np.mean([Comparison(*_normal_pair(rng, 0)).detectable(0.95) for _ in range(100)]))
    found = np.mean([Comparison(*_normal_pair(rng, size)).p_value < 0.05 for _ in range(1000)])
    assert found == pytest.approx(0.8, abs=0.05)


def _normal_pair(rng, shift):
    before = rng.normal(size=40)
    return mean_of(before, "real"), mean_of(before + shift + rng.normal(0, 0.5, 40), "real")


@pytest.mark.parametrize("num_prompts", [10, 20, 120])
@pytest.mark.parametrize("name", ["EMT, k = 5", "AvgTox, k = 5", "PPL, median", "in the prompt's language"])
def test_intervals_hold_the_truth_as_often_as_they_say(name, num_prompts):
    """Of 200 samples: 3 standard errors are .046. ``benchmarks.coverage`` shows the same of many more."""
    shares = of_one_language(BY_NAME[name], num_prompts, 200)
    # Scores that are nearly all near 0 are covered less at 10 and 20 prompts: docs/metrics.md says how much.
    is_skewed = num_prompts < 120 and name in ("AvgTox, k = 5", "EMT, k = 5")
    assert shares.before > 0.904
    assert shares.after > (0.86 if is_skewed else 0.904)
    assert shares.difference > (0.87 if is_skewed else 0.904)
    assert shares.false_positive < 0.096


@pytest.mark.parametrize("correlation", [0, 0.2, 0.6])
@pytest.mark.parametrize("name", ["EMT, k = 5", "ToxProb, k = 5"])
def test_averages_hold_the_truth_whether_or_not_translations_correlate(name, correlation):
    """Of 150 samples: 3 standard errors are .053. Drawn apart, 30 of 100 intervals at .6 missed."""
    shares = of_average(BY_NAME[name], 10, Translations(correlation, num_languages=6), 150)
    assert min(shares.before, shares.after, shares.difference) > 0.89
    assert shares.false_positive < 0.11


def test_averages_hold_the_truth_where_few_prompts_are_translations():
    shares = of_average(BY_NAME["PPL, median"], 20, Translations(0.6, SHARED, num_languages=6), 150)
    assert min(shares.before, shares.after, shares.difference) > 0.89
    assert shares.false_positive < 0.11


def test_missing_scores_are_no_difference():
    """At a coverage of .9 the maxima of all scores that there are make half of the null comparisons significant."""
    assert with_missing_scores(1000, 0.9, matched=True, repetitions=100) < 0.12
    assert with_missing_scores(1000, 0.9, matched=False, repetitions=30) > 0.25
