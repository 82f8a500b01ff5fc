import numpy as np
import pytest

from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Scores
from xgray.score.calibration.scorer_swap import AVERAGE, swap_effect, twice_scored


def make_rows(model, scores, language="en", scorer="first"):
    """Return rows of scores; None is a missing score."""
    return [
        Scores(
            prompt_id=f"{language}/{index}",
            language=language,
            model=model,
            scores=[dict.fromkeys(ATTRIBUTES) | {"toxicity": score} for score in of_prompt],
            errors=[None if score is not None else "missing" for score in of_prompt],
            scorer=scorer,
            scorer_version="1",
        )
        for index, of_prompt in enumerate(scores)
    ]


def find(rows, **wanted):
    (found,) = (row for row in rows if all(getattr(row, name) == value for name, value in wanted.items()))
    return found


def random_scores(num_prompts, k, mean, seed):
    return np.clip(np.random.default_rng(seed).normal(mean, 0.15, (num_prompts, k)), 0, 1).tolist()


def test_values_of_completions_with_both_scores_agree_with_hand_computed_values():
    first = make_rows("base", [[0.2, 0.6, 0.9], [0.4], [None, 0.8]])
    second = make_rows("base", [[0.3, 0.5, None], [0.1], [0.7, None]], scorer="second")
    scored = twice_scored(first, second)["base"]["en"]
    assert scored.num_left_out == 3
    np.testing.assert_array_equal(scored.first, [[0.2, 0.6, np.nan], [0.4, np.nan, np.nan], [np.nan] * 3])
    effect = swap_effect({"base": {"en": scored}})
    expected = {
        "emt": ((0.6 + 0.4) / 2, (0.5 + 0.1) / 2),
        "tox_prob": (0.5, 0.5),
        "avg_tox": ((0.2 + 0.6 + 0.4) / 3, (0.3 + 0.5 + 0.1) / 3),
    }
    for metric, (before, after) in expected.items():
        row = find(effect.values, metric=metric, language="en")
        assert (row.num_prompts, row.num_left_out) == (2, 3)
        assert row.first.value == pytest.approx(before)
        assert row.second.value == pytest.approx(after)
        assert row.difference.value == pytest.approx(after - before)
    assert effect.changes == []


def test_the_difference_is_paired_by_prompt():
    scores = np.array(random_scores(60, 5, 0.5, 0))
    shifted = (scores * 0.9).tolist()
    scored = twice_scored(make_rows("base", scores.tolist()), make_rows("base", shifted))
    row = find(swap_effect(scored).values, metric="avg_tox", language="en")
    assert row.difference.value == pytest.approx(-0.1 * scores.mean())
    assert row.difference.high < 0
    assert row.difference.high - row.difference.low < 0.2 * (row.first.high - row.first.low)


def test_a_conclusion_survives_smaller_scores_but_not_reversed_or_random_ones():
    base, tuned = np.array(random_scores(80, 4, 0.6, 1)), np.array(random_scores(80, 4, 0.4, 2))
    first = make_rows("base", base.tolist()) + make_rows("dpo", tuned.tolist())

    def swapped(change):
        second = make_rows("base", change(base).tolist()) + make_rows("dpo", change(tuned).tolist())
        return find(swap_effect(twice_scored(first, second)).changes, metric="avg_tox", language="en")

    smaller = swapped(lambda scores: scores / 2)
    assert (smaller.first_says, smaller.second_says, smaller.survives) == ("falls", "falls", True)
    assert smaller.first.value == pytest.approx(tuned.mean() - base.mean())
    assert smaller.second.value == pytest.approx(smaller.first.value / 2)
    reversed_ = swapped(lambda scores: 1 - scores)
    assert (reversed_.first_says, reversed_.second_says, reversed_.survives) == ("falls", "rises", False)
    unrelated = swapped(lambda scores: np.random.default_rng(scores.size).random(scores.shape))
    assert (unrelated.second_says, unrelated.survives) == ("unclear", False)


def test_the_average_weights_all_languages_equally():
    first = make_rows("base", random_scores(30, 2, 0.3, 3), "en") + make_rows(
        "base", random_scores(10, 2, 0.7, 4), "de"
    )
    second = make_rows("base", random_scores(30, 2, 0.4, 5), "en") + make_rows(
        "base", random_scores(10, 2, 0.7, 6), "de"
    )
    values = swap_effect(twice_scored(first, second)).values
    assert [row.language for row in values if row.metric == "emt"] == ["de", "en", AVERAGE]
    german, english, mean = (row for row in values if row.metric == "emt")
    assert mean.difference.value == pytest.approx((german.difference.value + english.difference.value) / 2)
    assert mean.num_prompts == 40
    assert mean.difference.low < mean.difference.value < mean.difference.high


def test_a_language_without_a_common_score_has_no_values():
    first = make_rows("base", [[None], [None]], "de") + make_rows("base", random_scores(5, 2, 0.5, 7))
    second = make_rows("base", [[0.1], [0.2]], "de") + make_rows("base", random_scores(5, 2, 0.5, 8))
    values = swap_effect(twice_scored(first, second)).values
    row = find(values, language="de", metric="emt")
    assert (row.first.value, row.num_prompts, row.num_left_out) == (None, 0, 2)
    assert "no completion" in row.first.reason
    assert find(values, language=AVERAGE, metric="emt").first == find(values, language="en", metric="emt").first


def test_missing_scores_of_one_model_are_no_fall():
    scores = np.array(random_scores(200, 8, 0.5, 9))
    fewer = np.where(np.random.default_rng(0).random(scores.shape) < 0.5, None, scores).tolist()
    rows = make_rows("base", scores.tolist()) + make_rows("dpo", fewer)
    row = find(swap_effect(twice_scored(rows, rows)).changes, metric="emt", language="en")
    assert row.first_says == "unclear"
    assert abs(row.first.value) < 0.02  # the plain maxima of half as many scores are .07 lower


def test_rows_of_different_prompts_or_completions_are_refused():
    with pytest.raises(InputError, match="en/1 has a row of only one scorer"):
        twice_scored(make_rows("base", [[0.1], [0.2]]), make_rows("base", [[0.1]]))
    with pytest.raises(InputError, match="en/1 has a row of only one scorer"):
        twice_scored(make_rows("base", [[0.1]]), make_rows("base", [[0.1], [0.2]]))
    with pytest.raises(InputError, match="en/0 has 1 scores of first and 2 of second"):
        twice_scored(make_rows("base", [[0.1]]), make_rows("base", [[0.1, 0.2]], scorer="second"))
