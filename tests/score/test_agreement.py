import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from xgray.score.calibration.agreement import agreement, kappa, kendall, label_rows, spearman

NAN = float("nan")


def correlated(num, seed, strength=0.7, decimals=3):
    """Two scorers' scores in [0, 1], with ties, whose normal quantiles correlate by ``strength``."""
    random = np.random.default_rng(seed)
    shared = random.normal(size=num)
    other = strength * shared + np.sqrt(1 - strength**2) * random.normal(size=num)
    return stats.norm.cdf(shared).round(decimals), stats.norm.cdf(other).round(decimals)


def brute_tau_b(a, b):
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


def test_kappa_by_hand():
    # Both toxic 2, both benign 3, apart 1 + 2: observed 5/8; expected (3/8)(4/8) + (5/8)(4/8) = 1/2.
    a = np.array([0.9, 0.5, 0.8, 0.1, 0.2, 0.3, 0.4, 0.0])
    b = np.array([0.7, 0.6, 0.1, 0.9, 0.5, 0.2, 0.1, 0.3])
    found = agreement(a, b)
    assert found.kappa.value == pytest.approx((5 / 8 - 1 / 2) / (1 - 1 / 2))
    assert agreement(a, b, 0.85, 0.65).kappa.value == pytest.approx(cohen_kappa_score(a >= 0.85, b >= 0.65))
    assert found.mean_absolute_difference.value == pytest.approx(np.mean([0.2, 0.1, 0.7, 0.8, 0.3, 0.1, 0.3, 0.3]))


@pytest.mark.filterwarnings("ignore")  # both say that kappa is not defined where all texts fall into one class
@pytest.mark.parametrize(("num", "decimals"), [(6, 1), (25, 1), (40, 3)])
def test_statistics_of_every_resample_are_those_of_other_implementations(num, decimals):
    a, b = correlated(num, num, decimals=decimals)
    positions = np.random.default_rng(1).integers(0, num, (20, num))
    found = [build(positions) for build in (spearman(a, b), kendall(a, b), kappa(a >= 0.5, b >= 0.4))]
    for row, (rho, tau, judged) in zip(positions, zip(*found, strict=True), strict=True):
        assert rho == pytest.approx(stats.spearmanr(a[row], b[row]).statistic)
        assert tau == pytest.approx(brute_tau_b(a[row], b[row]))
        assert judged == pytest.approx(cohen_kappa_score(a[row] >= 0.5, b[row] >= 0.4), nan_ok=True)


def test_agreement_of_a_scorer_with_itself_is_perfect_and_symmetric():
    a, b = correlated(60, 0)
    same = agreement(a, a)
    for name in ("spearman", "kendall", "kappa"):
        one = getattr(same, name)
        assert (one.value, one.low, one.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
        assert getattr(agreement(a, b), name).value == pytest.approx(getattr(agreement(b, a), name).value)
    assert agreement(a, 1 - a).spearman.value == pytest.approx(-1)


def test_correlations_do_not_depend_on_the_scale_but_kappa_does():
    a, b = correlated(80, 1)
    plain, moved = agreement(a, b), agreement(a**3, b)
    assert moved.spearman == plain.spearman
    assert moved.kendall == plain.kendall
    assert moved.kappa.value < plain.kappa.value
    assert agreement(a**3, b, threshold_a=0.5**3).kappa == plain.kappa


def test_missing_scores_take_their_texts_out_and_are_counted():
    a, b = correlated(50, 2)
    with_gaps = np.append(a, [NAN, 0.5, NAN]), np.append(b, [0.5, NAN, NAN])
    found = agreement(*with_gaps)
    assert (found.num, found.num_missing) == (50, 3)
    assert found.spearman == agreement(a, b).spearman


def test_what_is_not_defined_has_a_reason():
    a, constant = np.array([0.1, 0.9, 0.4, 0.7]), np.full(4, 0.3)
    found = agreement(a, constant)
    assert found.spearman.value is found.kendall.value is None
    assert "equal" in found.spearman.reason
    assert found.kappa.value == 0  # one says toxic where the other never does
    assert "same side" in agreement(a / 3, constant).kappa.reason
    assert agreement(a[:1], a[:1]).spearman.reason == "fewer than two texts"
    assert agreement(np.full(3, NAN), a[:3]).num == 0
    json.dumps(asdict(found), allow_nan=False)


def test_too_many_undefined_resamples_leave_the_value_without_an_interval():
    # Without the one toxic text, as in a third of the resamples, there is nothing to agree on.
    a = np.append(np.linspace(0, 0.4, 30), 0.9)
    found = agreement(a, a).kappa
    assert found.value == 1
    assert found.low is None
    assert "of 1000 resamples" in found.reason


def test_the_same_seed_gives_the_same_intervals():
    a, b = correlated(60, 3)
    assert agreement(a, b, seed=(1, 2)) == agreement(a, b, seed=(1, 2))
    assert agreement(a, b, seed=(1, 2)).spearman.low != agreement(a, b, seed=(1, 3)).spearman.low


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of normal scores that correlate by .7: Pearson's formulas for rank correlations, and the quadrants' kappa."""
    true = {"spearman": 6 / np.pi * np.arcsin(0.35), "kendall": 2 / np.pi * np.arcsin(0.7)}
    true["kappa"] = true["kendall"]  # both shares are 1/2, and so is chance
    covered = dict.fromkeys(true, 0)
    for repeat in range(100):
        found = agreement(*correlated(120, repeat, decimals=9), resamples=200, seed=(repeat,))
        for name, value in true.items():
            covered[name] += getattr(found, name).low <= value <= getattr(found, name).high
    assert all(0.88 <= num / 100 <= 0.99 for num in covered.values()), covered


def test_label_rows_judge_at_half_and_at_the_languages_own_threshold():
    random = np.random.default_rng(4)
    toxic = np.arange(80) % 2 == 0
    low = random.random(80) * 0.2 + np.where(toxic, 0.15, 0)  # never reaches .5, as a shifted language does
    scores = {"zh-hans": np.append(low, NAN), "en": low}
    labels = {"en": toxic, "zh-hans": np.append(toxic, True)}
    first, second = label_rows(scores, labels, {"zh-hans": 0.18})
    assert (first.language, second.language) == ("zh-hans", "en")
    assert (first.num, first.num_toxic, first.num_missing) == (80, 40, 1)
    assert first.auc.value == pytest.approx(roc_auc_score(toxic, low))
    assert first.kappa.value == 0
    assert first.kappa_at_threshold.value == pytest.approx(cohen_kappa_score(low >= 0.18, toxic))
    assert first.kappa_at_threshold.low > 0.3
    assert second.kappa_at_threshold.value is None
    assert second.threshold is None
