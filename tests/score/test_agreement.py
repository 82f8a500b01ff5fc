import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from xgray.score.calibration.agreement import agreement, kappa
from xgray.stats.agreement import kendall, spearman

NAN = float("nan")


def correlated(num, seed, strength=0.7, decimals=3):
    """Two scorers' scores in [0, 1], with ties, whose normal quantiles correlate by ``strength``."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=num)
    other = strength * shared + np.sqrt(1 - strength**2) * random.normal(size=num)
    return stats.norm.cdf(shared).round(decimals), stats.norm.cdf(other).round(decimals)


def tau_b_by_pairs(a, b):
    """Kendall's tau-b from its definition, pair by pair."""
    concordant = discordant = tied_a = tied_b = 0
    num = len(a)
    for i in range(num):
        for j in range(i):
            x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
            concordant += x * y > 0
            discordant += x * y < 0
            tied_a += x == 0
            tied_b += y == 0
    pairs = num * (num - 1) / 2
    return (concordant - discordant) / np.sqrt((pairs - tied_a) * (pairs - tied_b))


def test_kappa_and_absolute_difference_agree_with_hand_computed_values():
    # Both toxic 2, both benign 3, different 1 + 2: observed 5/8; expected (3/8)(4/8) + (5/8)(4/8) = 1/2.
    a = np.array([0.9, 0.5, 0.8, 0.1, 0.2, 0.3, 0.4, 0.0])
    b = np.array([0.7, 0.6, 0.1, 0.9, 0.5, 0.2, 0.1, 0.3])
    result = agreement(a, b)
    assert result.kappa.value == pytest.approx((5 / 8 - 1 / 2) / (1 - 1 / 2))
    assert agreement(a, b, 0.85, 0.65).kappa.value == pytest.approx(cohen_kappa_score(a >= 0.85, b >= 0.65))
    assert result.mean_absolute_difference.value == pytest.approx(np.mean([0.2, 0.1, 0.7, 0.8, 0.3, 0.1, 0.3, 0.3]))


@pytest.mark.filterwarnings("ignore")  # scikit-learn warns that kappa is not defined if all texts are in one class
@pytest.mark.parametrize(("num", "decimals"), [(6, 1), (25, 1), (40, 3)])
def test_statistics_of_resamples_agree_with_other_implementations(num, decimals):
    a, b = correlated(num, num, decimals=decimals)
    positions = np.random.default_rng(1).integers(0, num, (20, num))
    result = [build(positions) for build in (spearman(a, b), kendall(a, b), kappa(a >= 0.5, b >= 0.4))]
    for row, (rho, tau, judged) in zip(positions, zip(*result, strict=True), strict=True):
        assert rho == pytest.approx(stats.spearmanr(a[row], b[row]).statistic)
        assert tau == pytest.approx(tau_b_by_pairs(a[row], b[row]))
        assert judged == pytest.approx(cohen_kappa_score(a[row] >= 0.5, b[row] >= 0.4), nan_ok=True)


def test_agreement_is_symmetric_and_perfect_with_itself():
    a, b = correlated(60, 0)
    same = agreement(a, a)
    for name in ("spearman", "kendall", "kappa"):
        figure = getattr(same, name)
        assert (figure.value, figure.low, figure.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
        assert getattr(agreement(a, b), name).value == pytest.approx(getattr(agreement(b, a), name).value)
    assert agreement(a, 1 - a).spearman.value == pytest.approx(-1)


def test_kappa_depends_on_the_scale_but_correlations_do_not():
    a, b = correlated(80, 1)
    plain, rescaled = agreement(a, b), agreement(a**3, b)
    assert rescaled.spearman == plain.spearman
    assert rescaled.kendall == plain.kendall
    assert rescaled.kappa.value < plain.kappa.value
    assert agreement(a**3, b, threshold_a=0.5**3).kappa == plain.kappa


def test_texts_with_a_missing_score_are_left_out_and_counted():
    a, b = correlated(50, 2)
    with_gaps = np.append(a, [NAN, 0.5, NAN]), np.append(b, [0.5, NAN, NAN])
    result = agreement(*with_gaps)
    assert (result.num, result.num_missing) == (50, 3)
    assert result.spearman == agreement(a, b).spearman


def test_an_undefined_figure_has_a_reason():
    a, constant = np.array([0.1, 0.9, 0.4, 0.7]), np.full(4, 0.3)
    result = agreement(a, constant)
    assert result.spearman.value is result.kendall.value is None
    assert "equal" in result.spearman.reason
    assert result.kappa.value == 0  # the second scorer never reaches the threshold
    assert "same side" in agreement(a / 3, constant).kappa.reason
    assert agreement(a[:1], a[:1]).spearman.reason == "fewer than two texts"
    assert agreement(np.full(3, NAN), a[:3]).num == 0
    json.dumps(asdict(result), allow_nan=False)


def test_a_figure_that_many_resamples_leave_undefined_has_no_interval():
    # A third of the resamples lack the only toxic text, and kappa is not defined without it.
    a = np.append(np.linspace(0, 0.4, 30), 0.9)
    result = agreement(a, a).kappa
    assert result.value == 1
    assert result.low is None
    assert "of 1000 resamples" in result.reason


def test_intervals_depend_on_the_seed_alone():
    a, b = correlated(60, 3)
    assert agreement(a, b, seed=(1, 2)) == agreement(a, b, seed=(1, 2))
    assert agreement(a, b, seed=(1, 2)).spearman.low != agreement(a, b, seed=(1, 3)).spearman.low


def test_intervals_cover_the_true_value_at_their_nominal_rate():
    """True values for normal scores that correlate by .7: Pearson's formulas, and kappa from the quadrants."""
    true = {"spearman": 6 / np.pi * np.arcsin(0.35), "kendall": 2 / np.pi * np.arcsin(0.7)}
    true["kappa"] = true["kendall"]  # both shares are 1/2, and so is the agreement by chance
    covered = dict.fromkeys(true, 0)
    for repeat in range(100):
        result = agreement(*correlated(120, repeat, decimals=9), resamples=200, seed=(repeat,))
        for name, value in true.items():
            covered[name] += getattr(result, name).low <= value <= getattr(result, name).high
    assert all(0.88 <= num / 100 <= 0.99 for num in covered.values()), covered


def test_texts_of_one_prompt_are_drawn_together():
    """Four copies of each text say no more than one of them, if it is known that they are copies."""
    random = np.random.default_rng(4)
    a = random.random(60)
    b = np.clip(a + random.normal(0, 0.3, 60), 0, 1)
    once, four_times = agreement(a, b), (np.repeat(a, 4), np.repeat(b, 4))
    known = agreement(*four_times, groups=[str(text) for text in np.repeat(np.arange(60), 4)])
    unknown = agreement(*four_times)
    for name in ("spearman", "kappa", "mean_absolute_difference"):
        widths = [getattr(each, name).high - getattr(each, name).low for each in (once, known, unknown)]
        assert widths[1] == pytest.approx(widths[0], rel=0.1)
        assert widths[2] < 0.6 * widths[0]
