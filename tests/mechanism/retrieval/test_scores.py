import numpy as np
import pytest

from xgray.mechanism.retrieval.scores import METRICS, cosines, hits, pair_scores, ratio_margin, summary


def test_cosines_by_hand():
    result = cosines(np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [-4.0, 3.0]]))
    np.testing.assert_allclose(result, [[0.6, 0.0], [0.0, 0.6], [0.0, 0.0]], atol=1e-12)


def test_a_hit_exceeds_all_others_and_a_tie_is_a_miss():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.8, 0.3, 0.7]])
    assert hits(similarity).tolist() == [1, 0, 0]
    assert hits(similarity.T).tolist() == [1, 1, 1]


def test_ratio_margin_by_hand():
    # There are only two sentences, so both are nearest neighbours: the mean is over both cosines.
    similarity = np.array([[0.8, 0.4], [0.6, 0.2]])
    rows, columns = np.array([0.6, 0.4]), np.array([0.7, 0.3])
    expected = similarity / ((rows[:, None] + columns[None, :]) / 2)
    np.testing.assert_allclose(ratio_margin(similarity), expected)
    assert expected[0, 1] == pytest.approx(0.4 / 0.45)


def test_ratio_margin_takes_the_four_nearest_of_five():
    similarity = np.eye(5) * 0.5 + 0.1
    similarity[:, 4] += 0.2  # nearest, or next to it, to all
    rows = np.array([(0.6 + 0.3 + 0.1 + 0.1) / 4] * 4 + [(0.8 + 0.1 * 3) / 4])
    columns = np.array([(0.6 + 0.1 * 3) / 4] * 4 + [(0.8 + 0.3 * 3) / 4])
    expected = similarity / ((rows[:, None] + columns[None, :]) / 2)
    np.testing.assert_allclose(ratio_margin(similarity), expected)


def test_the_margin_corrects_for_a_sentence_that_is_near_to_all_others():
    similarity = np.full((6, 6), 0.1)
    np.fill_diagonal(similarity, 0.5)
    similarity[:, 0] = 0.6
    assert hits(similarity).tolist() == [1, 0, 0, 0, 0, 0]
    assert hits(ratio_margin(similarity)).tolist() == [1, 1, 1, 1, 1, 1]


def test_pairs_without_a_margin_are_not_retrieved():
    assert hits(ratio_margin(-np.eye(3))).tolist() == [0, 0, 0]


def test_scores_of_two_layers_by_hand():
    english = np.array([[[1, 0], [0, 1], [1, 1]], [[1, 0], [0, 1], [-1, 0]]], np.float32)
    # In the first layer the first two sentences are exchanged; in the second the states are those of English, scaled.
    other = np.stack([english[0][[1, 0, 2]], 3 * english[1]])
    scores = pair_scores(other, english)
    assert set(scores) == set(METRICS)
    assert scores["accuracy_to_en"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert scores["accuracy"].tolist() == [[0, 0, 1], [1, 1, 1]]
    np.testing.assert_allclose(scores["cosine"], [[0, 0, 1], [1, 1, 1]], atol=1e-7)


def test_the_two_directions_can_differ_and_accuracy_is_their_mean():
    english = np.array([[[1, 0], [1, 0.2], [0, 1]]], np.float32)
    other = np.array([[[1, 0.15], [1, 0.2], [0.1, 1]]], np.float32)
    scores = pair_scores(other, english)
    assert scores["accuracy_to_en"].tolist() == [[0, 1, 1]]
    assert scores["accuracy_from_en"].tolist() == [[1, 1, 1]]
    assert scores["accuracy"].tolist() == [[0.5, 1, 1]]
    swapped = pair_scores(english, other)
    assert swapped["accuracy_to_en"].tolist() == scores["accuracy_from_en"].tolist()
    assert swapped["margin_accuracy_from_en"].tolist() == scores["margin_accuracy_to_en"].tolist()


def test_duplicate_sentences_are_misses():
    states = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    states[:, 3] = states[:, 0]
    assert pair_scores(states, states)["accuracy"].tolist() == [[0, 1, 1, 0]] * 2


def test_summary_averages_layers_and_prompts_and_brackets_the_mean():
    scores = {"accuracy": np.array([[1.0, 0, 0, 1], [1, 1, 0, 1]]), "cosine": np.full((2, 4), 0.25)}
    result = summary(scores, 0.95)
    assert result["accuracy"]["value"] == 5 / 8
    assert result["accuracy"]["layers"]["value"] == [0.5, 0.75]
    assert result["accuracy"]["low"] < 5 / 8 < result["accuracy"]["high"]
    assert (result["cosine"]["low"], result["cosine"]["high"]) == (0.25, 0.25)


def test_an_accuracy_without_a_miss_has_an_interval():
    perfect = summary({"accuracy": np.ones((1, 10))}, 0.95)["accuracy"]
    assert (perfect["value"], perfect["high"]) == (1, 1)
    assert 0.6 < perfect["low"] < 0.75
