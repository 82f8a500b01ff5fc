import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from xgray.stats.agreement import (
    Sample,
    auc,
    averaged,
    kendall,
    mean,
    quadratic_kappa,
    resample_together,
    spearman,
)


def scores_and_ratings(num, seed, num_points):
    """Scores with ties, and ratings on the points 1 to ``num_points`` that depend on them."""
    random = np.random.default_rng(seed)
    scores = random.random(num).round(2)
    ratings = np.clip(np.round(scores * num_points + random.normal(0, 1.5, num)), 1, num_points)
    return scores, ratings


def value(statistic):
    return float(statistic(np.arange(statistic.num_prompts)))


def test_the_measures_have_hand_computed_values():
    scores, ratings = np.array([0.1, 0.4, 0.4, 0.9]), np.array([1.0, 3.0, 2.0, 2.0])
    # Ranks 1, 2.5, 2.5, 4 and 1, 4, 2.5, 2.5: deviations -1.5 0 0 1.5 and -1.5 1.5 0 0.
    assert value(spearman(scores, ratings)) == pytest.approx(2.25 / 4.5)
    # Six pairs, one tied in each; of the four others only that of the last text with the second is discordant.
    assert value(kendall(scores, ratings)) == pytest.approx((3 - 1) / 5)
    # Above 2 is the second text, below 2 the first: one pair in order.
    assert value(auc(scores, ratings > 2, ratings < 2)) == 1
    assert value(auc(scores, ratings > 2, ratings <= 2)) == pytest.approx((1 + 0.5 + 0) / 3)
    # Points 1 2 3 against 1 3 3: one difference of 1. By chance: pairs differ by 0 2 2, 1 1 1, 2 0 0.
    kappa = quadratic_kappa(np.array([1.0, 2, 3]), np.array([1.0, 3, 3]))
    assert value(kappa) == pytest.approx(1 - (1 / 3) / ((4 + 4 + 1 + 1 + 1 + 4) / 9))
    assert value(mean(np.array([1.0, 2.0, 6.0]))) == 3


@pytest.mark.parametrize(("num", "num_points"), [(30, 3), (60, 5), (150, 40)])
def test_resamples_agree_with_scipy_and_scikit_learn(num, num_points):
    scores, ratings = scores_and_ratings(num, num, num_points)
    is_upper, is_lower = ratings > num_points / 2, ratings <= num_points / 3
    points = np.round(scores * num_points)
    scale = list(range(num_points + 1))  # scikit-learn would weigh by the points that occur
    positions = np.random.default_rng(1).integers(0, num, (8, num))
    found = [
        statistic(positions)
        for statistic in (
            spearman(scores, ratings),
            kendall(scores, ratings),
            kendall(ratings, scores),
            auc(scores, is_upper, is_lower),
            quadratic_kappa(points, ratings),
        )
    ]
    for row, (rho, tau, swapped, area, kappa) in zip(positions, np.transpose(found), strict=True):
        assert rho == pytest.approx(stats.spearmanr(scores[row], ratings[row]).statistic)
        assert tau == pytest.approx(stats.kendalltau(scores[row], ratings[row]).statistic)
        assert tau == pytest.approx(swapped)
        classed = row[is_upper[row] | is_lower[row]]
        assert area == pytest.approx(roc_auc_score(is_upper[classed], scores[classed]))
        weighted = cohen_kappa_score(points[row], ratings[row], labels=scale, weights="quadratic")
        assert kappa == pytest.approx(weighted)


def test_what_is_not_defined_is_nan_without_a_warning():
    constant, rising = np.full(4, 0.5), np.arange(4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undefined = [
            spearman(constant, rising),
            kendall(rising, constant),
            auc(rising, rising > 9, rising < 2),
            auc(rising, rising > 9, rising > 9),
            quadratic_kappa(constant, constant),
        ]
        assert np.isnan([value(statistic) for statistic in undefined]).all()


def test_a_mean_of_statistics_leaves_out_what_is_not_defined():
    values = np.array([0.0, 1.0, 5.0, 5.0])
    parts = [(mean(values[:2]), np.array([0, 1])), (spearman(values[2:], values[2:]), np.array([2, 3]))]
    assert value(averaged(parts, 4)) == 0.5
    assert np.isnan(averaged(parts, 4).from_counts(np.array([[0.0, 0, 1, 1]]))[0])


def test_translations_are_drawn_together():
    values = np.random.default_rng(0).random(40)
    items = [str(index) for index in range(40)]
    name = ("a", "mean")
    same = resample_together({code: Sample({name: mean(values)}, items) for code in ("de", "en")}, 200, (0,))
    assert (same["de"][name].distribution == same["en"][name].distribution).all()
    other = Sample({name: mean(values)}, [f"other {item}" for item in items])
    apart = resample_together({"de": Sample({name: mean(values)}, items), "en": other}, 2000, (0,))
    first, second = (apart[code][name].distribution for code in ("de", "en"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert first.std() == pytest.approx(values.std() / np.sqrt(40), rel=0.1)


def test_texts_of_one_index_are_drawn_together():
    values = np.random.default_rng(1).random(40)
    name = ("a", "mean")
    once = Sample({name: mean(values)}, [str(at) for at in range(40)])
    twice = Sample({name: mean(np.repeat(values, 2))}, [str(at) for at in np.repeat(np.arange(40), 2)])
    widths = [resample_together({"de": sample}, 2000, (0,))["de"][name].distribution.std() for sample in (once, twice)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05), "copies of a text do not narrow the interval"
