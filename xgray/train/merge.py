"""Merge a LoRA adapter into a model's files a few rows at a time, in little more memory than the adapter takes.

    merged weight = stored weight + scaling * B A        (Hu et al. 2022), added in float32, saved as it is stored

PEFT merges a model that is loaded whole in float32: 6 bytes a parameter at its peak, 48 GB for 8 billion. That is still
done here for what cannot be merged row by row: see :func:`plan_merge`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from xgray.models.complete import ADAPTER_PREFIX
from xgray.models.files import ADAPTER_WEIGHTS, WEIGHTS

log = logging.getLogger(__name__)

BLOCK_BYTES = 2**26
"""Of the rows that are added at a time, in float32."""
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the precisions that weights are saved in."""
NAME = "default"
"""PEFT's name of an adapter that was given none."""


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one weight: ``scaling * left @ right``, in float32."""

    left: torch.Tensor
    """``(rows, r)``."""
    right: torch.Tensor
    """``(r, columns)``."""
    scaling: float

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return some rows, ``(end - start, columns)``."""
        return (self.left[start:end] @ self.right).mul_(self.scaling)


@dataclass(frozen=True)
class MergedWeight:
    """One weight of the merged model, and what it is made of."""

    name: str
    file: Path
    """Where the base weight is stored."""
    stored_name: str
    shape: tuple[int, ...]
    delta: Delta | None


def plan_merge(adapted: Any, plain: Any, adapter: Path, files: list[Path]) -> list[MergedWeight] | str:
    """Find what each weight of the merged model is made of.

    Args:
        adapted: The base model under PEFT's layers, without weights (:func:`xgray.models.complete.check_adapter`).
        plain: The base model without weights, whose configuration says whether its merged weights are tied.
        adapter: The adapter's folder.
        files: The base model's safetensors files.

    Returns:
        The merged model's weights, or why they cannot be made row by row: the adapter is a variant of LoRA, or
        transformers converts the stored weights when it loads them.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    deltas = _read_deltas(adapted, tensors)
    if isinstance(deltas, str):
        return deltas
    if getattr(plain.config, "quantization_config", None) is not None:
        return "the base model is quantized"
    state = plain.state_dict()
    if get_model_conversion_mapping(plain, add_legacy=False) or not all(
        tensor.is_floating_point() for tensor in state.values()
    ):
        return f"transformers converts the stored weights of {plain.config.model_type}"
    tied = plain.all_tied_weights_keys
    left_out = tied if plain.config.tie_word_embeddings else ()
    saved = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in left_out}
    places = _stored_places(state, tied, plain.base_model_prefix, files)
    # Beside LoRA's matrices PEFT stores embeddings that it adapts; on loading they replace the base model's.
    for name in tensors:
        base_name = name.removeprefix(ADAPTER_PREFIX).replace(".base_layer.", ".")
        if base_name in saved:
            places[base_name] = adapter / ADAPTER_WEIGHTS, name
    if missing := saved.keys() - places.keys():
        return f"its weight {min(missing)} is stored under another name"
    return [MergedWeight(name, *places[name], shape, deltas.get(name)) for name, shape in saved.items()]


def _read_deltas(adapted: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, Delta] | str:
    """Return what the adapter adds to each weight, by its name in the base model, or why it is no plain LoRA."""
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer

    deltas: dict[str, Delta] = {}
    used = set()
    for module_name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        is_embedding = type(layer) is Embedding
        if not is_embedding and type(layer) is not Linear:
            return f"the layer {module_name} is adapted as {type(layer).__name__}"
        if NAME in layer.lora_variant or layer.lora_bias[NAME]:
            return "it is a variant of LoRA"
        names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
        keys = [f"{ADAPTER_PREFIX}{module_name}.{name}" for name in names]
        if not all(key in tensors for key in keys):
            return f"it has no weights of its own for the layer {module_name}"
        used.update(keys)
        a, b = (tensors[key].float() for key in keys)
        is_transposed = is_embedding or layer.fan_in_fan_out
        left, right = (a.T, b.T) if is_transposed else (b, a)
        deltas[f"{module_name}.weight"] = Delta(left, right, layer.scaling[NAME])
    base_names = {
        f"{ADAPTER_PREFIX}{name}".replace(".base_layer.", ".") for name in adapted.get_base_model().state_dict()
    }
    others = [name for name in tensors if name not in used and name.replace(".base_layer.", ".") not in base_names]
    if others or not deltas:
        return f"it has other weights than LoRA's: {', '.join(others[:1])}"
    return deltas


def _stored_places(
    state: Mapping[str, Any], tied: Mapping[str, str], prefix: str, files: list[Path]
) -> dict[str, tuple[Path, str]]:
    """Return the file and the stored name of each weight, under which the body's prefix may be missing or added."""
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for stored in stream.keys():  # noqa: SIM118, the file is no mapping
                for name in (stored, f"{prefix}.{stored}", stored.removeprefix(f"{prefix}.")):
                    if name in state:
                        places.setdefault(name, (file, stored))
                        break
    for target, source in tied.items():
        for name, other in ((target, source), (source, target)):
            if name not in places and other in places:
                places[name] = places[other]
    return places


def write_merged(weights: list[MergedWeight], dtype: torch.dtype, target: Path) -> None:
    """Write the merged weights into one safetensors file.

    Args:
        weights: What they are made of.
        dtype: The precision that they are saved in.
        target: The merged model's folder.

    Raises:
        OSError: the disk is full, or refuses the file for another reason.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + math.prod(weight.shape) * dtype.itemsize
        header[weight.name] = {"dtype": DTYPE_NAMES[dtype], "shape": weight.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (target / WEIGHTS).open("wb") as output, ExitStack() as opened:
        output.write(len(text).to_bytes(8, "little") + text)
        streams = {file: opened.enter_context(safe_open(file, "pt")) for file in {weight.file for weight in weights}}
        for weight in weights:
            for block in _blocks(weight, streams[weight.file], dtype):
                output.write(block.contiguous().view(torch.uint8).numpy().data)


def _blocks(weight: MergedWeight, stream: Any, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield a merged weight in blocks of rows."""
    stored = stream.get_slice(weight.stored_name)
    if not weight.shape:
        yield stream.get_tensor(weight.stored_name).to(dtype).reshape(1)
        return
    num_rows = weight.shape[0]
    row_bytes = math.prod(weight.shape[1:]) * torch.float32.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, num_rows, step):
        rows = stored[start : start + step]
        if weight.delta is not None:
            rows = rows.float().add_(weight.delta.rows(start, min(start + step, num_rows)))
        yield rows.to(dtype)
