"""What a training takes of memory, against numbers worked out by hand."""

import pytest

from tests.train.tiny import make_tiny_model
from xgray.config import Train, TrainExecution
from xgray.models.load import load_skeleton
from xgray.train.memory import ModelShape, num_fitting, training_bytes

SHAPE = ModelShape(num_weights=1_000_000, num_linear=2_000, num_layers=3, hidden_size=10, vocabulary=50)
GIB = 2**30


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 4_000_000 + 12_000_000),
        ({"optimizer": "adamw"}, 4_000_000 + 16_000_000),
        ({"method": "lora", "lora_r": 8}, 4_000_000 + 64_000 + 192_000),
        ({"method": "lora", "lora_r": 8, "dtype": "bfloat16"}, 2_000_000 + 64_000 + 192_000),
        ({"method": "qlora", "lora_r": 8}, 600_000 + 64_000 + 192_000),
    ],
)
def test_bytes_of_weights_gradients_states_activations_and_logits(fields, expected):
    section = Train(**{"batch_size": 2, "max_length": 25, **fields})
    tokens = 2 * 2 * 25
    layers, logits = 3 * tokens * 10 * 68, tokens * 50 * 12
    assert training_bytes(section, SHAPE) == expected + layers + logits + GIB
    checkpointed = section.model_copy(update={"execution": TrainExecution(gradient_checkpointing=True)})
    assert training_bytes(section, SHAPE) - training_bytes(checkpointed, SHAPE) == layers * 2 // 3 - 3 * tokens * 10 * 4


def test_as_many_trainings_share_a_memory_as_fit_into_nine_tenths_of_it():
    assert num_fitting(9, 20) == 2
    assert num_fitting(10, 20) == 1
    assert num_fitting(100, 20) == 1, "the training itself says that its GPU is too small"


def test_the_shape_is_read_without_the_weights(tmp_path):
    skeleton = load_skeleton(make_tiny_model(tmp_path))
    shape = ModelShape.of(skeleton)
    attention, mlp = 2 * (32 + 32) + 2 * (32 + 16), 3 * (32 + 64)
    assert shape.num_linear == 2 * (attention + mlp)
    assert (shape.num_layers, shape.hidden_size, shape.vocabulary) == (2, 32, skeleton.config.vocab_size)
    assert shape.num_weights == skeleton.num_parameters(), "the tied head counts once"
