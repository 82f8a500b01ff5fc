import numpy as np
import pytest
from scipy import stats

from xgray.stats.agreement import mean
from xgray.stats.bootstrap import adjust_p_values, estimate


def test_the_interval_equals_scipys():
    values = np.random.default_rng(0).normal(size=40)
    low, high = estimate(mean(values), 40, 500, [3]).interval(0.9)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=500, confidence_level=0.9, method="percentile", rng=np.random.default_rng([3])
    ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_interval_of_two_texts_by_hand():
    # Resamples of {0, 1} have means 0, .5 and 1 with probabilities 1/4, 1/2, 1/4.
    half = estimate(mean(np.array([0.0, 1.0])), 2, 4000, [0])
    assert half.value == 0.5
    assert half.interval(0.95) == (0, 1)
    assert half.interval(0.4) == (0.5, 0.5)
    assert np.mean(half.distribution == 0.5) == pytest.approx(0.5, abs=0.03)


def test_the_seed_determines_the_interval():
    statistic = mean(np.random.default_rng(1).random(30))
    first, again, other = (estimate(statistic, 30, 200, seed).interval(0.95) for seed in ([1, 2], [1, 2], [1, 3]))
    assert first == again != other


def test_a_single_text_has_no_interval():
    assert estimate(mean(np.zeros(1)), 1, 100, [0]).interval(0.95) is None


def test_false_discovery_control_by_hand():
    # p * m / rank, then the running minimum from the largest.
    assert adjust_p_values([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
