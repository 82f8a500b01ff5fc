import numpy as np
import pytest
from scipy import stats

from xgray.experiment.stages.transfer import transfer
from xgray.mechanism.retrieval.correlation import correlate, pearson, prediction_errors, statement
from xgray.stats.bootstrap import draw_seed

LANGUAGES = ["ar", "cs", "de", "es", "fr", "hi", "id", "it", "ja", "ko"]


def given(values):
    return dict(zip(LANGUAGES, values, strict=False))


def test_correlations_are_scipys():
    rng = np.random.default_rng(4)
    x = rng.uniform(size=10)
    y = 0.6 * x + rng.normal(scale=0.2, size=10)
    found = correlate(given(x), given(y), 0.95, 500, 0)
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    method = stats.PermutationMethod(n_resamples=9999, rng=np.random.default_rng(1))
    assert found["pearson"]["p_value"] == pytest.approx(stats.pearsonr(x, y, method=method).pvalue, abs=0.02)
    draws = np.random.default_rng(list(draw_seed(0, "transfer")))
    method = stats.BootstrapMethod(n_resamples=500, method="percentile", rng=draws)
    interval = stats.pearsonr(x, y).confidence_interval(method=method)
    assert (found["pearson"]["low"], found["pearson"]["high"]) == pytest.approx(tuple(interval))
    slope, intercept = np.polyfit(x, y, 1)
    assert (found["slope"], found["intercept"]) == pytest.approx((slope, intercept))


def test_pearson_by_hand_and_its_sign():
    # Deviations -1, 0, 1 and -1, 2, -1 are orthogonal; -3, -1, 1, 3 with itself reversed is -1.
    assert pearson(np.array([1.0, 2, 3]), np.array([0.0, 3, 0])) == pytest.approx(0)
    assert pearson(np.array([1.0, 3, 5, 7]), np.array([7.0, 5, 3, 1])) == pytest.approx(-1)
    assert np.isnan(pearson(np.array([1.0, 1]), np.array([2.0, 3])))


def test_five_languages_in_a_line_by_hand():
    found = correlate(given([0.1, 0.2, 0.3, 0.4, 0.5]), given([0.2, 0.4, 0.6, 0.8, 1.0]), 0.95, 500, 0)
    assert found["pearson"]["value"] == found["spearman"]["value"] == pytest.approx(1)
    # All 120 pairings are tried: one is as good as this one, and one as bad as it is good.
    assert found["pearson"]["p_value"] == pytest.approx(2 / 120)
    assert found["verdict"] == "survives"
    assert (found["slope"], found["intercept"]) == pytest.approx((2, 0))
    assert found["prediction_error"] == pytest.approx(0)


def test_leaving_one_out_by_hand():
    x, y = np.array([0.0, 1, 2]), np.array([0.0, 1, 1])
    # Lines of two points: through (1,1) (2,1) at 0: 1; through (0,0) (2,1) at 1: .5; through (0,0) (1,1) at 2: 2.
    assert prediction_errors(x, y)[0] == pytest.approx((1 + 0.5 + 1) / 3)
    assert prediction_errors(x, y)[1] == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_line_where_the_others_have_one_score_is_their_mean():
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
def test_where_there_is_no_correlation_there_is_a_reason_and_no_number(scores, falls, reason):
    found = correlate(given(scores), given(falls), 0.95, 500, 0)
    assert found["reason"] == reason
    assert (found["pearson"], found["spearman"], found["prediction_error"]) == (None, None, None)
    assert statement([("accuracy", found)]) == (
        f"Whether languages that retrieve better change more cannot be said: {reason}."
    )


def test_a_p_value_is_never_told_as_zero():
    errors = {"prediction_error": 0.1, "prediction_error_of_mean": 0.2}
    found = {"pearson": {"value": 0.91, "p_value": 0.0002}, "verdict": "survives", **errors}
    assert "(r +0.91, p < 0.001)" in statement([("accuracy", found)])


def evaluated(falls):
    """evaluate's metrics in which each language's EMT fell by the share given; None for one without EMT before."""
    languages = {code: {"emt": {"relative_change": None if fall is None else -fall}} for code, fall in falls.items()}
    return {
        "confidence": 0.95,
        "resamples": 500,
        "comparisons": {"dpo": {"languages": languages}},
    }


def retrieval(scores):
    return {
        "pivot": "en",
        "entities": "corrected",
        "languages": {
            code: {
                "corrected": {"accuracy": {"value": one}, "margin_accuracy": {"value": one}, "cosine": {"value": 0.9}},
                "released": {
                    "accuracy": {"value": -one},
                    "margin_accuracy": {"value": one**2},
                    "cosine": {"value": one},
                },
            }
            for code, one in scores.items()
        },
    }


def test_better_retrieval_and_larger_fall_is_a_positive_r_without_english():
    scores = given(np.linspace(0.1, 0.9, 10))
    falls = {code: 0.5 * one for code, one in scores.items()} | {"en": 0.0}
    found = transfer(retrieval(scores), evaluated(falls), "dpo", 0)
    assert "en" not in found["languages"]
    assert found["missing"] == {}
    definitions = found["definitions"]
    assert definitions["accuracy"]["corrected"]["pearson"]["value"] == pytest.approx(1)
    assert definitions["accuracy"]["corrected"]["verdict"] == "survives"
    assert definitions["accuracy"]["released"]["verdict"] == "reversed"
    assert definitions["cosine"]["corrected"]["verdict"] == "untested"
    assert "change more under 4 of 6 definitions: accuracy, HTML entities repaired (r +1.00" in found["statement"]
    assert "change less under 1 of 6 definitions: accuracy, HTML entities left in (r -1.00" in found["statement"]
    assert "Nothing can be said under 1 of 6 definitions: mean cosine, HTML entities repaired." in found["statement"]


def test_languages_of_one_side_only_are_named_with_what_they_lack():
    scores = given(np.linspace(0.1, 0.9, 7))
    falls = {code: 0.1 * at for at, code in enumerate(LANGUAGES[2:9])} | {"de": None, "en": 0.3}
    found = transfer(retrieval(scores), evaluated(falls), "dpo", 0)
    assert sorted(found["languages"]) == ["es", "fr", "hi", "id"]
    assert found["missing"] == {
        "ar": "no relative change of EMT: it was not evaluated",
        "cs": "no relative change of EMT: it was not evaluated",
        "de": "no relative change of EMT: EMT was 0 before",
        "it": "no retrieval score",
        "ja": "no retrieval score",
    }
