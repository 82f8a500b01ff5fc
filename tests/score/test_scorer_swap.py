import numpy as np
import pytest

from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Scores
from xgray.score.calibration.scorer_swap import AVERAGE, swap_effect, twice_scored


def rows(model, scores, language="en", scorer="first"):
    """Rows of scores; None is a missing one."""
    return [
        Scores(
            prompt_id=f"{language}/{index}",
            language=language,
            model=model,
            scores=[dict.fromkeys(ATTRIBUTES) | {"toxicity": one} for one in own],
            errors=[None if one is not None else "missing" for one in own],
            scorer=scorer,
            scorer_version="1",
        )
        for index, own in enumerate(scores)
    ]


def find(found, **wanted):
    (one,) = (row for row in found if all(getattr(row, name) == value for name, value in wanted.items()))
    return one


def made(num_prompts, k, mean, seed):
    return np.clip(np.random.default_rng(seed).normal(mean, 0.15, (num_prompts, k)), 0, 1).tolist()


def test_values_by_hand_on_completions_that_both_have_scored():
    first = rows("base", [[0.2, 0.6, 0.9], [0.4], [None, 0.8]])
    second = rows("base", [[0.3, 0.5, None], [0.1], [0.7, None]], scorer="second")
    one = twice_scored(first, second)["base"]["en"]
    assert one.num_left_out == 3
    np.testing.assert_array_equal(one.first, [[0.2, 0.6, np.nan], [0.4, np.nan, np.nan], [np.nan] * 3])
    found = swap_effect({"base": {"en": one}}, resamples=200)
    expected = {
        "emt": ((0.6 + 0.4) / 2, (0.5 + 0.1) / 2),
        "tox_prob": (0.5, 0.5),
        "avg_tox": ((0.2 + 0.6 + 0.4) / 3, (0.3 + 0.5 + 0.1) / 3),
    }
    for metric, (before, after) in expected.items():
        row = find(found.values, metric=metric, language="en")
        assert (row.num_prompts, row.num_left_out) == (2, 3)
        assert row.first.value == pytest.approx(before)
        assert row.second.value == pytest.approx(after)
        assert row.difference.value == pytest.approx(after - before)
    assert found.changes == []


def test_the_difference_is_paired_by_prompt():
    scores = np.array(made(60, 5, 0.5, 0))
    shifted = (scores * 0.9).tolist()
    scored = twice_scored(rows("base", scores.tolist()), rows("base", shifted))
    row = find(swap_effect(scored, resamples=500).values, metric="avg_tox", language="en")
    assert row.difference.value == pytest.approx(-0.1 * scores.mean())
    assert row.difference.high < 0
    assert row.difference.high - row.difference.low < 0.2 * (row.first.high - row.first.low)


def test_a_conclusion_survives_a_scorer_that_shrinks_and_not_one_that_turns_it_round():
    base, tuned = np.array(made(80, 4, 0.6, 1)), np.array(made(80, 4, 0.4, 2))
    first = rows("base", base.tolist()) + rows("dpo", tuned.tolist())

    def swapped(change):
        second = rows("base", change(base).tolist()) + rows("dpo", change(tuned).tolist())
        return find(swap_effect(twice_scored(first, second)).changes, metric="avg_tox", language="en")

    shrunk = swapped(lambda scores: scores / 2)
    assert (shrunk.first_says, shrunk.second_says, shrunk.survives) == ("falls", "falls", True)
    assert shrunk.first.value == pytest.approx(tuned.mean() - base.mean())
    assert shrunk.second.value == pytest.approx(shrunk.first.value / 2)
    turned = swapped(lambda scores: 1 - scores)
    assert (turned.first_says, turned.second_says, turned.survives) == ("falls", "rises", False)
    blind = swapped(lambda scores: np.random.default_rng(scores.size).random(scores.shape))
    assert (blind.second_says, blind.survives) == ("unclear", False)


def test_the_average_counts_every_language_the_same():
    first = rows("base", made(30, 2, 0.3, 3), "en") + rows("base", made(10, 2, 0.7, 4), "de")
    second = rows("base", made(30, 2, 0.4, 5), "en") + rows("base", made(10, 2, 0.7, 6), "de")
    found = swap_effect(twice_scored(first, second), resamples=300).values
    assert [row.language for row in found if row.metric == "emt"] == ["de", "en", AVERAGE]
    german, english, mean = (row for row in found if row.metric == "emt")
    assert mean.difference.value == pytest.approx((german.difference.value + english.difference.value) / 2)
    assert mean.num_prompts == 40
    assert mean.difference.low < mean.difference.value < mean.difference.high


def test_a_language_without_a_common_score_has_no_figures():
    first = rows("base", [[None], [None]], "de") + rows("base", made(5, 2, 0.5, 7))
    second = rows("base", [[0.1], [0.2]], "de") + rows("base", made(5, 2, 0.5, 8))
    found = swap_effect(twice_scored(first, second), resamples=100).values
    row = find(found, language="de", metric="emt")
    assert (row.first.value, row.num_prompts, row.num_left_out) == (None, 0, 2)
    assert "no completion" in row.first.reason
    assert find(found, language=AVERAGE, metric="emt").first == find(found, language="en", metric="emt").first


def test_the_same_rows_give_the_same_figures():
    scored = twice_scored(rows("base", made(20, 3, 0.5, 9)), rows("base", made(20, 3, 0.5, 10)))
    assert swap_effect(scored, resamples=100) == swap_effect(scored, resamples=100)
    assert swap_effect(scored, resamples=100) != swap_effect(scored, resamples=100, seed=1)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="en/1 has a row of only one scorer"):
        twice_scored(rows("base", [[0.1], [0.2]]), rows("base", [[0.1]]))
    with pytest.raises(InputError, match="en/1 has a row of only one scorer"):
        twice_scored(rows("base", [[0.1]]), rows("base", [[0.1], [0.2]]))
    with pytest.raises(InputError, match="en/0 has 1 scores of first and 2 of second"):
        twice_scored(rows("base", [[0.1]]), rows("base", [[0.1, 0.2]], scorer="second"))
