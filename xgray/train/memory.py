"""The memory of a training's worker, by formula.

A step is at its fullest at one of four moments:

    the loss       weights, optimizer states, activations, a tile of logits and the head's gradient
    the first      the same without the tile, with the activations of one layer; only where they are
    layer again    recomputed (gradient checkpointing)
    the end of     weights, optimizer states, all gradients, one layer's activations,
    backward       the embeddings' gradient once more
    the update     weights, optimizer states, all gradients, two temporary copies of what is updated at a time

What a layer keeps for the backward pass is counted as Korthikanti et al. (2022, https://arxiv.org/abs/2205.05198) do,
for the operations of transformers' models. Of logits there is a tile of the vocabulary at a time
(:mod:`xgray.train.forward`). What CUDA and its libraries take, about a GiB, is not among the figures of
:class:`TrainingMemory`; :attr:`TrainingMemory.gpu_gib` adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xgray.config import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GIB = 2**30
FLOAT32 = 4
BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2}
"""Of a number in the arithmetic of ``train.dtype``."""
STATES = {"rmsprop": 1, "adamw": 2}
"""Numbers that the optimizer keeps of a weight."""
NF4 = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits, with a float32 factor for each 64 (bitsandbytes)."""
UPDATE_COPIES = 2
"""Temporary tensors in the update of a weight: the gradient with the weight decay, and the root that divides it."""
CPU_BLOCK, GPU_BLOCK = 2**18, 2**26
"""Numbers that RMSprop updates at a time (:mod:`xgray.train.rmsprop`)."""
KEPT_LOGITS = 2**24
"""The most logits that are kept for the backward pass on a CPU (64 MiB in float32). On a GPU TRL's kernels gain more
than keeping them."""
KEPT_COPIES = 4
"""These logits, their log-probabilities, and the gradients of both."""
TILE_ROWS, TILE_COLUMNS = 4096, 32_768
"""Predicted tokens and tokens of the vocabulary whose logits exist at a time (TRL's fused head)."""
CPU_COPIES = 7.25
"""Of a tile on a CPU, where a dozen operations stand in for the kernel that works in place."""
BUCKET = 500_000_000
"""Gradients that ZeRO collects before it sends them."""
LIVE_WEIGHTS = 1_000_000_000
"""Weights that ZeRO-3 keeps gathered at most."""
CUDA_BYTES = GIB
"""What CUDA, its libraries and gaps between tensors take, roughly."""


@dataclass(frozen=True)
class Kept:
    """What a layer keeps of a token for the backward pass."""

    hidden: int
    """Vectors of the hidden size."""
    intermediate: int
    """Vectors of the MLP's size."""
    in_float32: int
    """Vectors of the hidden size that are in float32 when the arithmetic is in 16 bits: norms and residuals."""


KEPT = {
    "bloom": Kept(8, 2, 2),
    "cohere": Kept(8, 4, 6),
    "gemma3_text": Kept(18, 4, 9),
    "gpt2": Kept(8, 5, 2),
}
"""By ``model_type``. GPT-2's GELU is made of several operations, BLOOM's of one; Gemma has four norms in a layer."""
LLAMA = Kept(10, 4, 7)
"""Of Llama, and of any other model with RMS norms and a gated MLP."""


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides about memory."""

    num_weights: int
    """All weights, tied ones once."""
    num_block_weights: int
    """Weights of the linear layers in the blocks, which LoRA adapts and QLoRA keeps in 4 bits."""
    adapter_rows: int
    """Inputs and outputs of these layers, summed: the adapter's weights for each unit of its rank."""
    adapter_inputs: int
    """Inputs of these layers, summed."""
    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    model_type: str
    """transformers' name of the architecture."""

    @property
    def embedding(self) -> int:
        """The weights of the token embeddings, and of the head."""
        return self.vocab_size * self.hidden_size


PAPER_MODELS = {
    "mgpt": ModelShape(1_417_596_928, 1_207_959_552, 786_432, 344_064, 100_000, 24, 2_048, 8_192, "gpt2"),
    "bloom-1b7": ModelShape(1_722_408_960, 1_207_959_552, 786_432, 344_064, 250_880, 24, 2_048, 8_192, "bloom"),
    "bloom-7b1": ModelShape(7_069_016_064, 6_039_797_760, 1_966_080, 860_160, 250_880, 30, 4_096, 16_384, "bloom"),
    "llama2-7b": ModelShape(6_738_415_616, 6_476_005_376, 2_498_560, 1_138_688, 32_000, 32, 4_096, 11_008, "llama"),
    "llama3-8b": ModelShape(8_030_261_248, 6_979_321_856, 2_621_440, 1_245_184, 128_256, 32, 4_096, 14_336, "llama"),
    "aya-23-8b": ModelShape(8_028_033_024, 6_979_321_856, 2_621_440, 1_245_184, 256_000, 32, 4_096, 14_336, "cohere"),
}
"""The paper's models, by the name of their shipped experiment: known without their files."""


def read_shape(skeleton: PreTrainedModel) -> ModelShape:
    """Return the shape of a causal language model.

    Args:
        skeleton: The model on any device, for example from :func:`xgray.models.load.load_skeleton`.
    """
    config: Any = skeleton.config.get_text_config()
    sizes = list(_block_layers(skeleton))
    return ModelShape(
        num_weights=sum(weight.numel() for weight in skeleton.parameters()),
        num_block_weights=sum(inputs * outputs for inputs, outputs in sizes),
        adapter_rows=sum(inputs + outputs for inputs, outputs in sizes),
        adapter_inputs=sum(inputs for inputs, _ in sizes),
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or 4 * config.hidden_size,
        model_type=config.model_type,
    )


def _block_layers(skeleton: PreTrainedModel) -> Iterator[tuple[int, int]]:
    """Yield inputs and outputs of each linear layer but the head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in skeleton.base_model.modules():
        if isinstance(module, torch.nn.Linear):
            yield module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            yield module.nx, module.nf


@dataclass(frozen=True)
class TrainingMemory:
    """The memory of one worker by what it is for, in bytes."""

    weights: float
    states: float
    """The optimizer's, with ZeRO also its float32 copies of the weights."""
    gradients: float
    buffers: float
    """For the exchange of gradients and weights among workers."""
    activations: float
    """Of all layers, when the loss is computed; the layers' inputs alone where the rest is recomputed."""
    layer: float
    """Of one layer, when the backward pass is there."""
    tile: float
    """The logits that are there at a time."""
    head_gradient: float
    """Of the head's weights."""
    embedding_gradient: float
    """Of the embeddings' weights, before it is added to the head's if these are the same; on a CPU it is sparse."""
    update: float
    """Temporary copies in the optimizer's step."""
    recomputes: bool
    """Whether activations are recomputed in the backward pass."""
    accumulates: bool
    """Whether a step has several batches, so that gradients are there from the second one's beginning on."""

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment of a step."""
        fixed = self.weights + self.states + self.buffers
        before = self.gradients if self.accumulates else 0.0
        loss = before + self.activations + self.tile + self.head_gradient
        recomputed = before + self.activations + self.layer + self.head_gradient if self.recomputes else 0.0
        end = self.gradients + self.layer + self.embedding_gradient
        return fixed + max(loss, recomputed, end, self.gradients + self.update)

    @property
    def gpu_gib(self) -> int:
        """GiB of GPU memory that the worker needs, those of CUDA itself included."""
        return math.ceil((self.peak + CUDA_BYTES) / GIB)


def training_memory(shape: ModelShape, section: Train, cuda: bool = True) -> TrainingMemory:
    """Return what one worker of a training takes with pairs as long as ``max_length`` allows.

    Args:
        shape: The model.
        section: The section ``train`` of the experiment file.
        cuda: Whether it runs on a GPU.
    """
    execution = section.execution
    tuned = _num_tuned(shape, section)
    tokens = 2 * max(1, section.batch_size // execution.num_workers) * section.max_length
    layer = tokens * _layer_bytes(shape, section)
    activations = shape.num_layers * layer
    if execution.gradient_checkpointing:
        activations = shape.num_layers * tokens * shape.hidden_size * _residual_bytes(section)
    rows = min(tokens, TILE_ROWS)
    tile_bytes: float = BYTES[section.dtype] * rows * TILE_COLUMNS
    if not cuda:
        tile_bytes += CPU_COPIES * FLOAT32 * rows * min(shape.vocab_size, TILE_COLUMNS)
        if tokens * shape.vocab_size <= KEPT_LOGITS:
            tile_bytes = KEPT_COPIES * FLOAT32 * tokens * shape.vocab_size
    largest = shape.embedding if section.method == "full" else 0
    block = math.inf if section.optimizer == "adamw" else GPU_BLOCK if cuda else CPU_BLOCK
    weights, states, gradients, buffers = _model_bytes(shape, section, tuned)
    shares = execution.num_workers if execution.strategy != "ddp" else 0
    return TrainingMemory(
        weights=weights,
        states=states,
        gradients=gradients,
        buffers=buffers,
        activations=activations + _copies(shape, section),
        layer=layer,
        tile=tile_bytes,
        head_gradient=FLOAT32 * largest,
        embedding_gradient=FLOAT32 * largest if cuda else 0.0,
        update=UPDATE_COPIES * FLOAT32 * min(tuned / shares if shares else largest, block),
        recomputes=execution.gradient_checkpointing,
        accumulates=section.gradient_accumulation > 1,
    )


def _num_tuned(shape: ModelShape, section: Train) -> int:
    if section.method == "full":
        return shape.num_weights
    outside = 2 * (shape.vocab_size + shape.hidden_size) if section.lora_targets == "released" else 0
    return section.lora_r * (shape.adapter_rows + outside)


def _model_bytes(shape: ModelShape, section: Train, tuned: int) -> tuple[float, float, float, float]:
    """Return bytes of weights, optimizer states, gradients and buffers of one worker."""
    execution, in_arithmetic = section.execution, BYTES[section.dtype]
    others = shape.num_weights - shape.num_block_weights
    frozen = {
        "full": 0.0,
        "lora": in_arithmetic * shape.num_weights,
        "qlora": NF4 * shape.num_block_weights + in_arithmetic * others,
    }[section.method]
    num_workers, states = execution.num_workers, STATES[section.optimizer]
    if execution.strategy == "ddp":
        buffers = FLOAT32 * tuned if num_workers > 1 else 0
        return frozen + FLOAT32 * tuned, FLOAT32 * states * tuned, FLOAT32 * tuned, buffers
    # DeepSpeed keeps tuned weights in the precision of the arithmetic, and a share of them in float32 too.
    held, state_bytes = in_arithmetic * tuned, FLOAT32 * (1 + states) * tuned / num_workers
    gradients = in_arithmetic * tuned / num_workers
    buffers = 2 * in_arithmetic * min(BUCKET, tuned)
    if execution.strategy == "zero3":
        live = in_arithmetic * min(LIVE_WEIGHTS, shape.num_weights)
        return (frozen + held) / num_workers + live, state_bytes, gradients, buffers
    return frozen + held, state_bytes, gradients, buffers


def _copies(shape: ModelShape, section: Train) -> float:
    """Return the bytes of float32 weights that the arithmetic reads in 16 bits, and that are copied for it."""
    if section.method != "full" or BYTES[section.dtype] == FLOAT32 or section.execution.strategy != "ddp":
        return 0.0
    return BYTES[section.dtype] * shape.num_block_weights


def _layer_bytes(shape: ModelShape, section: Train) -> float:
    """Return what a layer keeps of one token for the backward pass, in bytes."""
    kept, in_arithmetic = KEPT.get(shape.model_type, LLAMA), BYTES[section.dtype]
    numbers = kept.hidden * shape.hidden_size + kept.intermediate * shape.intermediate_size
    kept_bytes = in_arithmetic * numbers + (FLOAT32 - in_arithmetic) * kept.in_float32 * shape.hidden_size
    if section.method == "full" or section.dropout == "released" or not section.lora_dropout:
        return kept_bytes
    # The adapters' inputs after their dropout, and which of them it left.
    return kept_bytes + (in_arithmetic + 1) * shape.adapter_inputs / shape.num_layers


def _residual_bytes(section: Train) -> int:
    """Return the bytes of a number of the residual stream, which has the precision of the embeddings."""
    return FLOAT32 if section.method == "full" else BYTES[section.dtype]
