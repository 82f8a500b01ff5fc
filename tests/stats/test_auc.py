import numpy as np
import pytest

from xgray.stats.auc import auc_against_labels, auc_by_language, auc_interval


def test_auc_is_the_share_of_pairs_in_order():
    scores, toxic = np.array([0.9, 0.4, 0.3, 0.6, 0.4]), np.array([True, True, False, False, False])
    # Of the six pairs (.9 above all three; .4 above .3, below .6, equal to .4): 3 + 1 + .5.
    auc = auc_against_labels(scores, toxic)
    assert auc.value == pytest.approx(4.5 / 6)
    assert auc.low < auc.value < auc.high
    assert auc_against_labels(scores, np.ones(5, bool)).value is None


def test_each_language_has_the_measures_of_its_texts():
    toxic = np.array([True, True, False, False, True, False, True, False])
    scores = np.array([0.9, 0.4, 0.3, 0.6, 0.2, 0.8, 0.2, 0.8])
    aucs = auc_by_language(["de"] * 4 + ["en"] * 4, toxic, scores, 0.5)
    # de: of the pairs (.9, .3) (.9, .6) (.4, .3) (.4, .6) three are in order; en: none is.
    assert aucs["de"]["auc"] == 0.75
    assert aucs["en"]["auc"] == 0
    assert aucs["de"]["accuracy"] == 0.5
    assert aucs["en"]["accuracy"] == 0
    assert (aucs["de"]["num_toxic"], aucs["de"]["num_benign"]) == (2, 2)
    assert aucs["de"]["low"] < 0.75 < aucs["de"]["high"]


@pytest.mark.parametrize(("auc", "num_toxic", "num_benign"), [(0.8, 50, 100), (0.95, 24, 24), (0.3, 10, 30)])
def test_both_ends_of_the_interval_are_just_compatible_with_the_auc(auc, num_toxic, num_benign):
    def deviation(true):
        """Hanley and McNeil's standard error with both exponential terms averaged over the two counts."""
        q1, q2 = true / (2 - true), 2 * true**2 / (1 + true)
        half = (num_toxic + num_benign) / 2
        variance = true * (1 - true) + (half - 1) * (q1 - true**2) + (half - 1) * (q2 - true**2)
        return (variance / (num_toxic * num_benign)) ** 0.5

    low, high = auc_interval(auc, num_toxic, num_benign)
    assert (auc - low) / deviation(low) == pytest.approx(1.959964, abs=1e-4)
    assert (high - auc) / deviation(high) == pytest.approx(1.959964, abs=1e-4)


def test_a_perfect_auc_is_not_certain():
    low, high = auc_interval(1.0, 24, 24)
    assert 0.85 < low < 0.95
    assert high == 1.0
    assert auc_interval(0.0, 24, 24) == pytest.approx((0.0, 1 - low))
