"""What a training takes of the memory of a GPU or a machine, at most, by formula: it says how many can share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xgray.config import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT32 = 4
QUANTIZED = 0.6
"""Bytes of a weight in 4 bits, with the constants of its block."""
STATES = {"rmsprop": 2, "adamw": 3}
"""Numbers that the optimizer holds or copies for each trained weight during an update."""
ACTIVATION_BYTES = 2 * 34
"""What a layer keeps of each token and hidden unit for the backward pass, in float32: twice the bytes of half precision
(Korthikanti et al. 2022, arXiv 2205.05198), without the matrix of the attention, which no kernel keeps."""
LOGITS = 3
"""Copies of the logits: their values, log-probabilities and gradient."""
PROCESS_BYTES = 2**30
"""What a process takes besides: its libraries, CUDA among them."""
USABLE = 0.9
"""The part of the memory that trainings may fill; the rest is lost between the blocks of several processes."""


@dataclass(frozen=True)
class ModelShape:
    """What the memory of a training depends on."""

    num_weights: int
    num_linear: int
    """Summed inputs and outputs of the linear layers that LoRA adapts."""
    num_layers: int
    hidden_size: int
    vocabulary: int

    @classmethod
    def of(cls, skeleton: PreTrainedModel) -> ModelShape:
        """Return the shape of a model, which may be without weights."""
        import torch
        from transformers.pytorch_utils import Conv1D

        head = skeleton.get_output_embeddings()
        linear = [module for module in skeleton.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
        config = skeleton.config.get_text_config()
        return cls(
            num_weights=sum(weight.numel() for weight in skeleton.parameters()),
            num_linear=sum(sum(module.weight.shape) for module in linear if module is not head),
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocabulary=config.vocab_size,
        )


def training_bytes(section: Train, shape: ModelShape) -> int:
    """Return the memory of a training with a single worker, in bytes.

    All pairs are taken to be as long as ``max_length`` allows.
    """
    is_full = section.method == "full"
    num_trained = shape.num_weights if is_full else section.lora_r * shape.num_linear
    each = FLOAT32 if is_full or section.dtype == "float32" else FLOAT32 / 2
    weights = shape.num_weights * (QUANTIZED if section.method == "qlora" else each)
    adapter = 0 if is_full else num_trained * FLOAT32
    updated = num_trained * FLOAT32 * (1 + STATES[section.optimizer])
    tokens = 2 * section.batch_size * section.max_length
    each_layer = tokens * shape.hidden_size * ACTIVATION_BYTES
    activations = shape.num_layers * each_layer
    if section.execution.gradient_checkpointing:  # only the layers' inputs are kept, and what one of them computes
        activations = each_layer + shape.num_layers * tokens * shape.hidden_size * FLOAT32
    logits = tokens * shape.vocabulary * FLOAT32 * LOGITS
    return round(weights + adapter + updated + activations + logits) + PROCESS_BYTES


def num_fitting(needed: int, total: int) -> int:
    """Return how many trainings of ``needed`` bytes a memory of ``total`` bytes holds, one at least."""
    return max(1, int(USABLE * total) // needed)
