"""How many floating-point operations a training step needs, and how many a device can do.

Only matrix products count: with ``m × k`` and ``k × n`` entries one takes ``2 m k n`` FLOPs. The backward pass of a
layer multiplies twice as often as its forward pass, once for the gradient of its input and once for that of its weight;
a frozen weight has no gradient. So full tuning takes three times the forward pass, and LoRA little more than twice.
What is computed again, by gradient checkpointing or by a fused loss, is not counted, as in PaLM's model FLOPs
utilization (https://arxiv.org/abs/2204.02311, appendix B). Neither are masks deducted, causal ones and windows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of a configuration whose model sends each token through some of its layers only."""

PEAKS = {
    "B200": (2250, 1125, 75),
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100": (989, 495, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
    "L4": (121, 60, 30.3),
    "A10G": (70, 35, 35),
    "A10": (125, 62.5, 31.2),
    "RTX 4090": (165, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
}
"""Dense TFLOP/s in bfloat16, TF32 and float32, from the makers' data sheets, by a part of the device's name. A name
that contains another one stands before it."""
MEASURING_SECONDS = 0.3
MEASURED_SIZE = 1024
"""Rows and columns of the matrices that a device's peak is measured with."""


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of one forward and backward pass, by what they are proportional to."""

    token: int
    """For each position that goes through the blocks."""
    head_position: int
    """For each position whose next token is scored: the product with the embeddings of the whole vocabulary."""
    attention_pair: int
    """For each query and key of a sequence, over all blocks and heads."""

    def total(self, computed_tokens: float, head_positions: float, attention_pairs: float) -> float:
        """Return the FLOPs of a batch."""
        return (
            self.token * computed_tokens + self.head_position * head_positions + self.attention_pair * attention_pairs
        )


def model_flops(model: PreTrainedModel) -> ModelFlops | None:
    """Return the FLOPs of a decoder and its adapters, read off its linear layers and its configuration.

    Every input is taken to have a gradient. That is wrong for the projections of queries, keys and values in the first
    block if the embeddings are frozen, less than 1 % of a model with 16 blocks.

    Args:
        model: The model as it is trained, with the right weights frozen; its weights may be partitioned.

    Returns:
        None for a mixture of experts, whose FLOPs depend on the tokens.
    """
    config: PretrainedConfig = model.config.get_text_config()
    if any(getattr(config, name, None) for name in EXPERTS):
        return None
    token = head_position = 0
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            # The layer's own numbers: DeepSpeed leaves an empty weight, and four bits are packed in another shape.
            size = module.nx * module.nf if isinstance(module, Conv1D) else module.in_features * module.out_features
            flops = (6 if module.weight.requires_grad else 4) * size
            if getattr(module, "out_features", None) == config.vocab_size:
                head_position += flops
            else:
                token += flops
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Two products, queries with keys and weights with values, each with two in the backward pass.
    attention_pair = 12 * config.num_hidden_layers * config.num_attention_heads * head_size
    return ModelFlops(token, head_position, attention_pair)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s that a device can do in dense matrix products: from a data sheet, or measured.

    A CPU and an unknown GPU multiply square matrices for a third of a second, on as many threads as PyTorch uses here;
    the fastest product counts.

    Args:
        device: The device of the training.
        dtype: The type of the products' inputs; for float32 PyTorch's setting decides about TF32.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((peaks for part, peaks in PEAKS.items() if part in name), None)
        if known is not None:
            uses_tf32 = torch.get_float32_matmul_precision() != "highest"
            return 1e12 * known[0 if dtype != torch.float32 else 1 if uses_tf32 else 2]
    return _measured_peak(device, dtype)


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(MEASURED_SIZE, MEASURED_SIZE, device=device, dtype=dtype)
    product = torch.empty_like(matrix)
    fastest = float("inf")
    end = time.perf_counter() + MEASURING_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * MEASURED_SIZE**3 / fastest
