import numpy as np
import pytest

from xgray.data.labelled import LabelledText
from xgray.score.head import Head, auc_interval, fit_head, measured


def made(num, seed=0):
    """Embeddings whose first direction tells the labels apart."""
    random = np.random.default_rng(seed)
    toxic = np.arange(num) % 3 == 0
    vectors = random.normal(size=(num, 8)) + 5
    vectors[:, 0] += np.where(toxic, 2.0, 0.0)
    return vectors.astype(np.float32), toxic


def test_probabilities_are_the_logistic_function_of_the_weighted_sum():
    head = Head(np.array([1.0, -2.0]), 0.5)
    found = head.probabilities(np.array([[0.25, 0.5], [3.0, 0.0]], np.float32))
    assert found == pytest.approx([1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-3.5))], abs=1e-15)


def test_a_probability_does_not_depend_on_its_neighbours():
    random = np.random.default_rng(0)
    head = Head(random.normal(size=384), 0.1)
    vectors = random.normal(size=(37, 384)).astype(np.float32)
    alone = np.concatenate([head.probabilities(vectors[index : index + 1]) for index in range(37)])
    assert np.array_equal(head.probabilities(vectors), alone)
    assert np.array_equal(head.probabilities(vectors[::-1]), alone[::-1])


def test_the_fit_finds_the_direction_and_repeats_to_the_bit():
    vectors, toxic = made(300)
    head = fit_head(vectors, toxic)
    assert np.argmax(np.abs(head.weights)) == 0
    assert np.mean((head.probabilities(vectors) >= 0.5) == toxic) > 0.8
    again = fit_head(vectors, toxic)
    assert again.weights.tobytes() == head.weights.tobytes()
    assert again.intercept == head.intercept


def test_the_head_is_that_of_standardised_embeddings():
    """Scale and offset of a direction change the weights, not the probabilities."""
    vectors, toxic = made(200)
    head = fit_head(vectors, toxic)
    moved = fit_head(vectors * 10 + 3, toxic)
    assert moved.probabilities(vectors * 10 + 3) == pytest.approx(head.probabilities(vectors), abs=1e-4)


def test_measures_are_those_of_each_language():
    texts = [LabelledText(str(i), "de", i < 2, "validate") for i in range(4)]
    texts += [LabelledText(str(i), "en", i % 2 == 0, "validate") for i in range(4)]
    found = measured(texts, np.array([0.9, 0.4, 0.3, 0.6, 0.2, 0.8, 0.2, 0.8]))
    # de: of the pairs (.9, .3) (.9, .6) (.4, .3) (.4, .6) three are in order; en: none is.
    assert found["de"]["auc"] == 0.75
    assert found["en"]["auc"] == 0
    assert found["de"]["accuracy"] == 0.5
    assert found["en"]["accuracy"] == 0
    assert (found["de"]["num_toxic"], found["de"]["num_benign"]) == (2, 2)
    assert found["de"]["low"] < 0.75 < found["de"]["high"]


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
