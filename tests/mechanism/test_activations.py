"""Mean activations in padded batches with a cache, against running each prefix through the model by itself."""

import numpy as np
import pytest

from benchmarks.reference import released
from benchmarks.reference.measurements import greedy_activations
from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.errors import InputError
from xgray.mechanism.activations import measure_activations

TEXTS = ["a longer text of some words", "b", "another", "two words", "b"]
NEURONS = [(2, 5), (0, 47), (2, 0), (1, 30)]
NEW_TOKENS = 12


@pytest.mark.parametrize("kind", CONFIGS)
def test_means_equal_those_of_single_texts_without_cache(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    expected = [greedy_activations(model, tokenizer, text, NEURONS, NEW_TOKENS)[0] for text in TEXTS]
    assert np.ptp([activations.mean() for activations in expected]) > 1e-3
    for batch_size in (1, 2, 8):
        means, counts = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, batch_size)
        assert means.dtype == np.float32
        assert counts.tolist() == [len(activations) for activations in expected]
        np.testing.assert_allclose(means, [activations.mean(0) for activations in expected], atol=1e-5)


def test_a_continuation_counts_up_to_its_end_of_text_token():
    model, tokenizer = make_model("llama"), make_tokenizer()
    _, tokens = greedy_activations(model, tokenizer, TEXTS[0], NEURONS, NEW_TOKENS)
    assert len(tokens) == NEW_TOKENS
    end = tokens[4]
    length = tokens.index(end) + 1
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    means, counts = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, 8)
    assert counts[0] == length
    for text, row, count in zip(TEXTS, means, counts, strict=True):
        rows, _ = greedy_activations(model, tokenizer, text, NEURONS, NEW_TOKENS)
        assert count == len(rows)
        np.testing.assert_allclose(row, rows.mean(0), atol=1e-5)


def test_no_texts_give_no_rows():
    assert measure_activations(make_model("gpt2"), make_tokenizer(), [], NEURONS, 3, 8)[0].shape == (0, 4)


def test_an_empty_text_is_refused():
    with pytest.raises(InputError, match="text 2 of 2 is empty"):
        measure_activations(make_model("gpt2"), make_tokenizer(), ["a", ""], NEURONS, 3, 8)


def test_an_activation_that_is_not_finite_is_refused_with_its_neuron():
    model = make_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[30] = float("nan")
    with pytest.raises(InputError, match=r"neuron \[1, 30\] \(layer, index\) after text 2 of 2 is nan"):
        measure_activations(model, make_tokenizer(), ["long", "a"], [(0, 1), (1, 30)], 3, 8)


def test_logits_that_are_not_finite_are_refused():
    model = make_model("llama")
    model.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="the logits after text 1 of 1 are not finite"):
        measure_activations(model, make_tokenizer(), ["long"], [(0, 1)], 3, 8)


@pytest.mark.parametrize("kind", CONFIGS)
def test_released_puts_a_beginning_before_gpt2s_prompts_and_goes_on_after_the_end(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    tokenizer.bos_token = "<end>"
    runs = (released.activations(model, tokenizer, text, NEURONS, NEW_TOKENS) for text in TEXTS)
    expected, tokens = zip(*runs, strict=True)
    model.config.eos_token_id = tokens[0][3]
    means, counts = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, 2, protocol="released")
    assert counts.tolist() == [NEW_TOKENS] * len(TEXTS)
    np.testing.assert_allclose(means, [rows.mean(0) for rows in expected], atol=1e-5)
    corrected, ended = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, 2)
    assert ended[0] <= 4 or kind == "gpt2"  # whose other beginning leads to another continuation
    assert np.abs(corrected[0] - means[0]).max() > 1e-3
