import numpy as np
import pytest

from xgray.score.embedding_head import Head, fit_head


def make_embeddings(num, seed=0):
    """Return embeddings whose first direction separates the labels, and the labels."""
    random = np.random.default_rng(seed)
    toxic = np.arange(num) % 3 == 0
    vectors = random.normal(size=(num, 8)) + 5
    vectors[:, 0] += np.where(toxic, 2.0, 0.0)
    return vectors.astype(np.float32), toxic


def test_a_probability_is_the_logistic_function_of_the_weighted_sum():
    head = Head(np.array([1.0, -2.0]), 0.5)
    probabilities = head.toxicity(np.array([[0.25, 0.5], [3.0, 0.0]], np.float32))
    assert probabilities == pytest.approx([1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-3.5))], abs=1e-15)


def test_a_probability_does_not_depend_on_the_other_embeddings():
    random = np.random.default_rng(0)
    head = Head(random.normal(size=384), 0.1)
    vectors = random.normal(size=(37, 384)).astype(np.float32)
    alone = np.concatenate([head.toxicity(vectors[index : index + 1]) for index in range(37)])
    assert np.array_equal(head.toxicity(vectors), alone)
    assert np.array_equal(head.toxicity(vectors[::-1]), alone[::-1])


def test_the_fit_finds_the_direction_and_repeats_to_the_bit():
    vectors, toxic = make_embeddings(300)
    head = fit_head(vectors, toxic)
    assert np.argmax(np.abs(head.weights)) == 0
    assert np.mean((head.toxicity(vectors) >= 0.5) == toxic) > 0.8
    again = fit_head(vectors, toxic)
    assert again.weights.tobytes() == head.weights.tobytes()
    assert again.intercept == head.intercept


def test_scale_and_offset_of_the_embeddings_do_not_change_probabilities():
    vectors, toxic = make_embeddings(200)
    head = fit_head(vectors, toxic)
    rescaled = fit_head(vectors * 10 + 3, toxic)
    assert rescaled.toxicity(vectors * 10 + 3) == pytest.approx(head.toxicity(vectors), abs=1e-4)
