"""Potential sources by hand, for both orientations of the down projection, and the tokens that they promote."""

import numpy as np
import pytest
import torch

from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.errors import InputError
from xgray.mechanism.neurons import down_projections, transformer_layers
from xgray.mechanism.vectors import activation_intervals, overlap, potential_sources, top_tokens

W = np.eye(32, dtype=np.float32)[0] * 7


def set_value_vector(projection, index, vector):
    """Write a value vector into the weight: a row of GPT-2's Conv1D, a column in all other architectures."""
    weight = projection.weight.data
    target = weight[index] if type(projection).__name__ == "Conv1D" else weight[:, index]
    target.zero_()
    target[: len(vector)] = torch.tensor(vector, dtype=target.dtype)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_value_vectors_in_the_probes_direction_are_found(kind, dtype):
    model = make_model(kind).to(dtype)
    projections = down_projections(model)
    set_value_vector(projections[2], 5, [3.0])  # cosine 1, whatever the length of vector and probe
    set_value_vector(projections[0], 47, [4.0, 3.0])  # .8
    if kind == "gemma3_text":  # the gain is 1 + weight: (4, 2) arrives in the residual stream as (4, 3)
        for layer in transformer_layers(model):
            layer.post_feedforward_layernorm.weight.data.zero_()
        transformer_layers(model)[0].post_feedforward_layernorm.weight.data[1] = 0.5
        set_value_vector(projections[0], 47, [4.0, 2.0])
    set_value_vector(projections[1], 0, [-2.0])  # -1
    set_value_vector(projections[1], 3, [0.0])  # no direction
    vectors, layers = potential_sources(model, make_tokenizer(), W, top_k=2, num_tokens=4)
    assert [vector.neuron for vector in vectors] == [(2, 5), (0, 47)]
    assert [vector.cosine for vector in vectors] == pytest.approx([1.0, 0.8], abs=1e-6)
    assert layers[2].max == pytest.approx(1)
    width = 128 if kind in ("gpt2", "bloom") else 48
    assert [layer.num_neurons for layer in layers] == [width] * 3
    everything, _ = potential_sources(model, make_tokenizer(), W, top_k=10**6, num_tokens=1)
    assert len({vector.neuron for vector in everything}) == 3 * width
    assert everything[-1].neuron == (1, 0)
    assert next(vector for vector in everything if vector.neuron == (1, 3)).cosine == 0


def test_cosines_are_those_of_all_vectors_at_once():
    model = make_model("llama")
    w = np.random.default_rng(0).normal(size=32).astype(np.float32)
    stacked = np.concatenate([projection.weight.detach().numpy().T for projection in down_projections(model)]).astype(
        float
    )
    expected = stacked @ w / np.linalg.norm(stacked, axis=1) / np.linalg.norm(w)
    vectors, layers = potential_sources(model, make_tokenizer(), w, top_k=20, num_tokens=3)
    order = np.argsort(-expected)[:20]
    assert [vector.neuron for vector in vectors] == [divmod(int(position), 48) for position in order]
    assert [vector.cosine for vector in vectors] == pytest.approx(expected[order], abs=1e-6)
    assert [layer.mean for layer in layers] == pytest.approx(expected.reshape(3, 48).mean(axis=1), abs=1e-6)


def test_a_value_vector_promotes_the_tokens_of_highest_logit():
    model, tokenizer = make_model("llama"), make_tokenizer()
    unembedding = model.get_output_embeddings().weight.data
    unembedding.zero_()
    letters = tokenizer.convert_tokens_to_ids(["a", "b", "Ġ", "c"])
    for token, value in zip(letters, (3.0, 2.0, 5.0, 1.0), strict=True):
        unembedding[token, 1] = value
    set_value_vector(down_projections(model)[1], 4, [1.0, 0.5])
    (vector,), _ = potential_sources(model, tokenizer, W + np.eye(32, dtype=np.float32)[1] * 3.5, 1, num_tokens=4)
    assert vector.neuron == (1, 4)
    assert vector.tokens == ["␣", "a", "b", "c"]
    # The size of the blocks does not matter, and rows beyond the vocabulary are no tokens.
    vectors = torch.eye(32)[1:2]
    assert top_tokens(model, vectors, 4, len(tokenizer), 1000) == [[letters[2], letters[0], letters[1], letters[3]]]
    assert top_tokens(model, vectors, 4, len(tokenizer), 7) == [[letters[2], letters[0], letters[1], letters[3]]]
    assert letters[2] not in top_tokens(model, vectors, 4, letters[2], 7)[0]


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.ones(31, np.float32), "the probe has 31 dimensions, but the model has 32"),
        (np.zeros(32, np.float32), "no direction"),
        (np.full(32, np.nan, np.float32), "no direction"),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(w, message):
    with pytest.raises(InputError, match=message):
        potential_sources(make_model("llama"), make_tokenizer(), w, 3, 3)


def test_activation_intervals_are_over_texts():
    activations = np.array([[1.0, -1.0], [3.0, -1.0], [2.0, -1.0], [2.0, -1.0]])
    first, second = activation_intervals(activations)
    assert first["value"] == 2
    assert first["low"] < 1 < 3 < first["high"]
    assert (second["value"], second["low"], second["high"]) == (-1, -1, -1)
    # A neuron's interval does not depend on the other neurons.
    assert activation_intervals(activations[:, :1]) == [first]
    assert activation_intervals(activations[:1])[0] == {"value": 1, "low": None, "high": None}


def test_overlap_by_hand():
    result = overlap([(0, 1), (0, 2), (1, 1)], [(0, 2), (1, 1), (3, 3), (4, 4)], num_neurons=60)
    assert result == {"num_found": 4, "num_common": 2, "jaccard": 0.4, "expected": 0.2}
    assert overlap([(0, 1)], [], 60)["jaccard"] == 0
