"""Sentence states of tiny random models of each architecture, against single texts without padding."""

import weakref

import numpy as np
import pytest
import torch

from benchmarks.reference.measurements import mean_hidden_states
from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.errors import InputError, StageError
from xgray.mechanism.retrieval.files import distinct, read_states, states_file, write_states
from xgray.mechanism.retrieval.states import encode
from xgray.storage.folder import Folder

TEXTS = [
    "Shut up, you idiot",
    "a",
    "Mon patron est un parfait crétin, toujours",
    "闭嘴，你这个懒惰的白痴",
    "My boss is a complete moron and he always acts like a",
    "one two",
]


@pytest.mark.parametrize("kind", CONFIGS)
def test_states_equal_those_of_single_texts_for_every_batch_size(kind):
    model, tokenizer = make_model(kind), make_tokenizer()
    expected = np.stack([mean_hidden_states(model, tokenizer, text) for text in TEXTS], axis=1)
    assert expected.shape == (4, len(TEXTS), 32)
    for batch_size in (1, 4, 32):
        encoded = encode(model, tokenizer, TEXTS, max_tokens=64, batch_size=batch_size)
        np.testing.assert_allclose(encoded.states, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert encoded.num_tokens.tolist() == [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert not encoded.truncated.any()


def test_states_of_all_tokens_are_held_of_one_layer_at_a_time():
    """Memory would grow with layers times tokens if the layers' outputs were kept."""
    model, num_alive = make_model("llama"), []
    outputs = []

    def count(module, inputs, output):
        num_alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output if torch.is_tensor(output) else output[0]))

    for layer in model.model.layers:
        layer.register_forward_hook(count)
    encode(model, make_tokenizer(), TEXTS, 64, 8)
    assert num_alive == [0, 1, 1]  # only the layer's own input


def test_a_model_without_one_list_of_layers_is_refused():
    model = make_model("llama")
    model.config.num_hidden_layers = 7
    with pytest.raises(InputError, match="a LlamaForCausalLM has no list of 7 layers"):
        encode(model, make_tokenizer(), TEXTS, 64, 8)


def test_the_tokenizers_padding_side_changes_nothing():
    model, tokenizer = make_model("gpt2"), make_tokenizer()
    states = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        states.append(encode(model, tokenizer, TEXTS, 64, 3).states)
    assert np.array_equal(*states)


def test_long_texts_are_cut_and_reported():
    model, tokenizer = make_model("llama"), make_tokenizer()
    cut = encode(model, tokenizer, [TEXTS[4], "a"], max_tokens=5, batch_size=2)
    whole = encode(model, tokenizer, [TEXTS[4][:5], "a"], max_tokens=64, batch_size=2)
    np.testing.assert_allclose(cut.states, whole.states, rtol=1e-6)
    assert cut.num_tokens.tolist() == [5, 1]
    assert cut.truncated.tolist() == [True, False]


def test_a_text_is_cut_at_the_models_context():
    encoded = encode(make_model("gpt2"), make_tokenizer(), ["idiot " * 200], max_tokens=256, batch_size=2)
    assert encoded.num_tokens.tolist() == [64]
    assert encoded.truncated.tolist() == [True]


def test_states_that_are_not_finite_are_refused_with_their_layer():
    model, tokenizer = make_model("llama"), make_tokenizer()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"not finite in torch\.float32 from layer 2 on"):
        encode(model, tokenizer, TEXTS, 64, 8)


def test_states_are_read_as_written_and_a_damaged_file_is_refused(tmp_path):
    folder = Folder(str(tmp_path))
    encoded = encode(make_model("llama"), make_tokenizer(), TEXTS, 4, 8)
    write_states(folder, "de", encoded)
    result = read_states(folder, "de")
    assert np.array_equal(result.states, encoded.states)
    assert np.array_equal(result.num_tokens, encoded.num_tokens)
    assert np.array_equal(result.truncated, encoded.truncated)
    folder.write_bytes(states_file("de"), folder.read_bytes(states_file("de"))[:-8])
    with pytest.raises(StageError, match=r"de.safetensors is damaged .*; delete it"):
        read_states(folder, "de")


def test_texts_are_distinct_over_both_versions():
    assert distinct(["a", "b", "a"], ["a", "&b;", "a"]) == ["a", "b", "&b;"]
