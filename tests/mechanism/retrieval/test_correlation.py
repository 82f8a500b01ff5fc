import numpy as np
import pytest
from scipy import stats

from xgray.experiment.stages.transfer import transfer
from xgray.mechanism.retrieval.correlation import correlate, pearson, prediction_errors, statement
from xgray.stats.bootstrap import draw_seed

LANGUAGES = ["ar", "cs", "de", "es", "fr", "hi", "id", "it", "ja", "ko"]


def by_language(values):
    return dict(zip(LANGUAGES, values, strict=False))


def test_correlations_intervals_and_p_values_agree_with_scipy():
    rng = np.random.default_rng(4)
    x = rng.uniform(size=10)
    y = 0.6 * x + rng.normal(scale=0.2, size=10)
    result = correlate(by_language(x), by_language(y), 0.95, 500, 0)
    assert result["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert result["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    method = stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(1))
    assert result["pearson"]["p_value"] == pytest.approx(stats.pearsonr(x, y, method=method).pvalue, abs=0.02)
    draws = np.random.default_rng(list(draw_seed(0, "transfer")))
    method = stats.BootstrapMethod(n_resamples=500, method="percentile", rng=draws)
    # Hesterberg's expanded percentiles: those of the normal distribution at t's quantile, over sqrt((n - 1) / n).
    tail = stats.norm.cdf(-np.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
    interval = stats.pearsonr(x, y).confidence_interval(confidence_level=1 - 2 * tail, method=method)
    assert (result["pearson"]["low"], result["pearson"]["high"]) == pytest.approx(tuple(interval))
    slope, intercept = np.polyfit(x, y, 1)
    assert (result["slope"], result["intercept"]) == pytest.approx((slope, intercept))


def test_pearson_by_hand_and_its_sign():
    # Deviations -1, 0, 1 and -1, 2, -1 are orthogonal; -3, -1, 1, 3 with itself reversed is -1.
    assert pearson(np.array([1.0, 2, 3]), np.array([0.0, 3, 0])) == pytest.approx(0)
    assert pearson(np.array([1.0, 3, 5, 7]), np.array([7.0, 5, 3, 1])) == pytest.approx(-1)
    assert np.isnan(pearson(np.array([1.0, 1]), np.array([2.0, 3])))


def test_five_languages_in_a_line_by_hand():
    result = correlate(by_language([0.1, 0.2, 0.3, 0.4, 0.5]), by_language([0.2, 0.4, 0.6, 0.8, 1.0]), 0.95, 500, 0)
    assert result["pearson"]["value"] == result["spearman"]["value"] == pytest.approx(1)
    # Of all 120 pairings one has r = 1 and one has r = -1.
    assert result["pearson"]["p_value"] == pytest.approx(2 / 120)
    assert result["verdict"] == "survives"
    assert (result["slope"], result["intercept"]) == pytest.approx((2, 0))
    assert result["prediction_error"] == pytest.approx(0)


def test_leave_one_out_errors_by_hand():
    x, y = np.array([0.0, 1, 2]), np.array([0.0, 1, 1])
    # The line through (1,1) and (2,1) is 1 at x = 0; through (0,0) and (2,1) .5 at 1; through (0,0) and (1,1) 2 at 2.
    assert prediction_errors(x, y)[0] == pytest.approx((1 + 0.5 + 1) / 3)
    assert prediction_errors(x, y)[1] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_the_line_is_the_mean_where_all_other_scores_are_equal():
    by_line, by_mean = prediction_errors(np.array([0.0, 0, 0, 1]), np.array([1.0, 2, 3, 6]))
    assert np.isfinite(by_line)
    assert by_mean == pytest.approx((8 / 3 + 4 / 3 + 0 + 4) / 4)


@pytest.mark.parametrize(
    ("scores", "falls", "reason"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4], "4 languages have both values; a correlation needs 5"),
        ([0.5] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], "the retrieval score is the same in all languages"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0.3] * 5, "the fall of EMT is the same in all languages"),
    ],
)
def test_without_a_correlation_there_is_a_reason_and_no_number(scores, falls, reason):
    result = correlate(by_language(scores), by_language(falls), 0.95, 500, 0)
    assert result["reason"] == reason
    assert (result["pearson"], result["spearman"], result["prediction_error"]) == (None, None, None)
    assert reason in statement([("accuracy", result)])


def test_a_small_p_value_is_not_printed_as_zero():
    errors = {"prediction_error": 0.1, "prediction_error_of_mean": 0.2}
    result = {"pearson": {"value": 0.91, "p_value": 0.0002}, "verdict": "survives", **errors}
    assert "(r +0.91, p < 0.001)" in statement([("accuracy", result)])


def evaluated(falls):
    """Return metrics of evaluate with these relative falls of EMT; None for a language whose EMT was 0 before."""
    languages = {code: {"emt": {"relative_change": None if fall is None else -fall}} for code, fall in falls.items()}
    return {
        "confidence": 0.95,
        "resamples": 500,
        "comparisons": {"dpo": {"languages": languages}},
    }


def retrieval(scores):
    """Return metrics of retrieve in which the definitions are functions of these scores."""
    return {
        "pivot": "en",
        "entities": "corrected",
        "languages": {
            code: {
                "corrected": {
                    "accuracy": {"value": score},
                    "margin_accuracy": {"value": score},
                    "cosine": {"value": 0.9},
                },
                "released": {
                    "accuracy": {"value": -score},
                    "margin_accuracy": {"value": score**2},
                    "cosine": {"value": score},
                },
            }
            for code, score in scores.items()
        },
    }


def test_better_retrieval_and_larger_fall_is_a_positive_r_without_english():
    scores = by_language(np.linspace(0.1, 0.9, 10))
    falls = {code: 0.5 * score for code, score in scores.items()} | {"en": 0.0}
    result = transfer(retrieval(scores), evaluated(falls), "dpo", 0)
    assert "en" not in result["languages"]
    assert result["missing"] == {}
    definitions = result["definitions"]
    assert definitions["accuracy"]["corrected"]["pearson"]["value"] == pytest.approx(1)
    assert definitions["accuracy"]["corrected"]["verdict"] == "survives"
    assert definitions["accuracy"]["released"]["verdict"] == "reversed"
    assert definitions["cosine"]["corrected"]["verdict"] == "untested"
    assert "change more under 4 of 6 definitions: accuracy, HTML entities repaired (r +1.00" in result["statement"]
    assert "change less under 1 of 6 definitions: accuracy, HTML entities left in (r -1.00" in result["statement"]
    assert "Nothing can be said under 1 of 6 definitions: mean cosine, HTML entities repaired." in result["statement"]


def test_languages_without_a_pair_of_values_are_listed_with_the_reason():
    scores = by_language(np.linspace(0.1, 0.9, 7))
    falls = {code: 0.1 * index for index, code in enumerate(LANGUAGES[2:9])} | {"de": None, "en": 0.3}
    result = transfer(retrieval(scores), evaluated(falls), "dpo", 0)
    assert sorted(result["languages"]) == ["es", "fr", "hi", "id"]
    assert result["missing"] == {
        "ar": "no relative change of EMT: it was not evaluated",
        "cs": "no relative change of EMT: it was not evaluated",
        "de": "no relative change of EMT: EMT was 0 before",
        "it": "no retrieval score",
        "ja": "no retrieval score",
    }
