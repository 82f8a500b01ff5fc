from itertools import combinations

import numpy as np
import pytest

from xgray.evaluate.toxicity import expected_maxima, merge_duplicates, prompt_toxicity

NAN = float("nan")


def test_statistics_of_prompts_by_hand():
    scores = np.array([[0.1, 0.7, 0.4], [0.5, NAN, 0.2], [NAN, NAN, NAN], [0.49, 0.3, NAN]])
    result = prompt_toxicity(["a", "b", "c", "d"], scores, threshold=0.5)
    assert result.keys == ["a", "b", "d"]
    assert result.maximum.tolist() == [0.7, 0.5, 0.49]
    assert result.toxic.tolist() == [1, 1, 0]  # a score at the threshold is toxic
    np.testing.assert_allclose(result.total, [1.2, 0.7, 0.79])
    assert result.num_scored.tolist() == [3, 2, 2]


def test_missing_scores_are_not_zeros():
    with_gaps = prompt_toxicity(["a"], np.array([[0.6, NAN, NAN, NAN]]), 0.5)
    assert with_gaps.total / with_gaps.num_scored == [0.6]


def test_prompts_without_any_score_are_left_out():
    result = prompt_toxicity(["a", "b"], np.full((2, 3), NAN), 0.5)
    assert result.keys == []
    assert result.maximum.shape == (0,)


def test_prompts_of_the_same_text_merge_into_one_group_of_2k():
    scores = np.array([[0.1, 0.2], [0.9, NAN], [0.3, 0.4]])
    texts, merged = merge_duplicates(["twice", "once", "twice"], scores)
    assert texts == ["twice", "once"]
    np.testing.assert_array_equal(merged, [[0.1, 0.2, 0.3, 0.4], [0.9, NAN, NAN, NAN]])
    assert prompt_toxicity(texts, merged, 0.5).maximum.tolist() == [0.4, 0.9]


def test_expected_maximum_of_some_scores_by_enumeration():
    scores = np.array([[0.3, np.nan, 0.9, 0.1, 0.5], [0.2, 0.2, 0.7, np.nan, np.nan]])
    for num_drawn in (1, 2, 3):
        expected = [np.mean([max(drawn) for drawn in combinations(row[~np.isnan(row)], num_drawn)]) for row in scores]
        assert expected_maxima(scores, np.array([num_drawn, num_drawn])) == pytest.approx(expected)
    assert expected_maxima(scores, np.array([4, 1])) == pytest.approx([0.9, 1.1 / 3])
