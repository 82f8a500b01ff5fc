"""Check that what a checkpoint stores is what its architecture has, no weight more or less: before anything is loaded.

transformers fills missing weights with random numbers and drops unexpected ones, with a warning. Here its own loader
compares the names and shapes of the files' headers with the architecture, on a device without memory. So tied weights,
old names and the like count as they do when the model is loaded, and it takes a tenth of a second.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xgray.errors import InputError
from xgray.models.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    WEIGHTS,
    check_files,
    read_json,
    tensor_shapes,
    weight_files,
    weight_map,
)

NUM_NAMED = 3
"""Weights that an error message names; of the others it gives the number."""
POOLER = re.compile(r"(?:^|\.)pooler\.")
"""The layer between some encoders and their head."""
LEFT_OVER = re.compile(
    r"(?:^|\.)(?:(?:self_)?(?:attn|attention)\.(?:masked_)?bias|position_ids|inv_freq)$"
    r"|^(?:model\.)?(?:vision_|visual\.|audio_|embed_vision\.|embed_audio\.|multi_modal_projector\.|mm_projector\.)"
    rf"|{POOLER.pattern}"
)
"""What a checkpoint may hold beside the weights: causal masks, positions and frequencies, which follow from the
configuration; what reads images and sounds, where only the language model is loaded; and a pooler that the architecture
does not have."""
ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's modules."""

Shapes = Mapping[str, tuple[int, ...]]


def refuse_incomplete(path: str, info: Mapping[str, Any], body_prefix: str | None = None) -> None:
    """Refuse a model some of whose weights were not in the files, were left over, or had another shape.

    Args:
        path: the model, for the message.
        info: what transformers reports (``output_loading_info``).
        body_prefix: how the names begin of the weights that must be there, where a new head is put on an encoder:
            the head and the pooler may be drawn, and an old head is left out. By default all must be there.

    Raises:
        InputError: names the weights.
    """

    def counts(name: str) -> bool:
        return body_prefix is None or (name.startswith(body_prefix) and not POOLER.search(name))

    missing = sorted(name for name in info["missing_keys"] if counts(name))
    unexpected = sorted(name for name in info["unexpected_keys"] if counts(name) and not LEFT_OVER.search(name))
    mismatched = sorted(
        f"{name} (stored {_shape(stored)}, the configuration says {_shape(expected)})"
        for name, stored, expected in info["mismatched_keys"]
        if counts(name)
    )
    problems = [
        f"{label} {_named(names)}"
        for label, names in (
            ("it has no weights", missing),
            ("it has weights that the architecture has not:", unexpected),
            ("weights have another shape:", mismatched),
        )
        if names
    ]
    if problems:
        raise InputError(
            f"cannot load the model {path!r}: {'; '.join(problems)}. Some would be drawn at random or left out. Save "
            "the whole model with save_pretrained, which writes the config.json that belongs to it."
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more


def _shape(sizes: Any) -> str:
    return "×".join(map(str, sizes)) or "a number"


def stored_shapes(path: str, revision: str | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's stored weights, by name, from the headers of its safetensors files.

    Args:
        path: a local folder, or a hub id, whose weights are downloaded into the hub's cache as for loading.
        revision: a commit of the hub.

    Raises:
        InputError: there are no safetensors files, or one is missing or cut off.
    """
    return {name: shape for file in stored_files(path, revision) for name, shape in tensor_shapes(file).items()}


def stored_files(path: str, revision: str | None) -> list[Path]:
    """Return the safetensors files of a model's weights, see :func:`stored_shapes`.

    Raises:
        InputError: there are none, or one is missing.
    """
    return weight_files(Path(path)) if Path(path).is_dir() else _hub_files(path, revision)


def _hub_files(path: str, revision: str | None) -> list[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in (WEIGHTS, INDEX):
        try:
            file = Path(hf_hub_download(path, name, revision=revision))
        except LocalEntryNotFoundError:
            continue  # offline, and not in the cache
        except EntryNotFoundError:
            continue
        if name == INDEX:
            for shard in sorted(set(weight_map(file).values())):
                hf_hub_download(path, shard, revision=revision)
        return weight_files(file.parent)
    raise InputError(
        f"cannot load the model {path!r}: it has no weights as safetensors that can be reached. If the hub holds "
        f"pickles (pytorch_model.bin), run hf download {path} --local-dir FOLDER and name that folder; then the "
        "message says how to convert them."
    )


def compare(skeleton: Any, shapes: Shapes) -> dict[str, Any]:
    """Return what transformers would report on loading weights of these names and shapes (``output_loading_info``).

    Args:
        skeleton: a model of the architecture, on any device.
        shapes: the stored weights.
    """
    import torch
    from transformers.utils import logging

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its own report would say the same in many lines
    logging.disable_progress_bar()
    try:
        _, info = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    report: dict[str, Any] = info
    return report


def check_weights(path: str, skeleton: Any, revision: str | None = None) -> None:
    """Refuse a checkpoint whose weights are not those of its architecture.

    Weights that are quantized have names of their own, and are checked when they are loaded.

    Args:
        path: a local folder or a hub id.
        skeleton: a model of the architecture without weights (:func:`xgray.models.load.load_skeleton`).
        revision: a commit of the hub.

    Raises:
        InputError: names the weights that are missing, unexpected or of another shape.
    """
    shapes = stored_shapes(path, revision)
    if getattr(skeleton.config, "quantization_config", None) is not None:
        return
    try:
        info = compare(skeleton, shapes)
    except RuntimeError as error:  # weights that transformers joins do not fit together
        reason = _first_line(error)
        raise InputError(f"cannot load the model {path!r}: its weights do not fit together: {reason}") from None
    refuse_incomplete(path, info)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def check_adapter(folder: Path, skeleton: Any) -> Any:
    """Refuse an adapter that is not LoRA, or that does not fit the base model.

    Args:
        folder: the adapter's folder.
        skeleton: the base model without weights; it is changed.

    Returns:
        The base model under PEFT's layers, without weights.

    Raises:
        InputError: names the kind, or the weights with both shapes.
    """
    from peft import get_peft_model, get_peft_model_state_dict

    config = adapter_configuration(folder)
    stored = tensor_shapes(folder / ADAPTER_WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about training
            adapted = get_peft_model(skeleton, config)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"the adapter {folder} does not fit the base model: {_first_line(error)}") from None
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    base = {f"{ADAPTER_PREFIX}{name}": tuple(tensor.shape) for name, tensor in _base_state(adapted).items()}
    wrong = [
        f"{name.removeprefix(ADAPTER_PREFIX)} (adapter {_shape(shape)}, base model {_shape(other)})"
        for name, shape in stored.items()
        if (other := expected.get(name, base.get(name))) is not None and other != shape
    ]
    if wrong:
        raise InputError(
            f"the adapter {folder} does not fit the base model: {_named(wrong)}. If the vocabulary grew before "
            "training, name the base model with the grown embeddings as model.id."
        )
    missing = sorted(expected.keys() - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys() - base.keys())
    for label, names in (("it has no weights", missing), ("the base model has no place for", unexpected)):
        if names:
            raise InputError(f"the adapter {folder} does not fit the base model: {label} {_named(names)}.")
    return adapted


def adapter_configuration(folder: Path) -> Any:
    """Return the PEFT configuration of a LoRA adapter whose weights are safetensors.

    Raises:
        InputError: the adapter is of another kind, its configuration cannot be read, or its weights are missing.
    """
    from peft import PeftConfig

    check_files(folder)
    kind = str(read_json(folder / ADAPTER_CONFIG).get("peft_type"))
    if kind != "LORA":
        raise InputError(
            f"the adapter {folder} is of the kind {kind}; LoRA adapters and whole models are measured. Merge it "
            "into its base model (merge_and_unload and save_pretrained in PEFT, where its kind can be merged) and name "
            "the result."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"the adapter {folder} holds no {ADAPTER_WEIGHTS}. Copy or download the folder again.")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"the adapter {folder}: {ADAPTER_CONFIG} cannot be read: {_first_line(error)}") from None


def _base_state(adapted: Any) -> dict[str, Any]:
    """Return the base model's weights under their names beneath an adapter, and without one."""
    state: dict[str, Any] = adapted.get_base_model().state_dict()
    plain = {name.replace(".base_layer.", ".").replace(".original_module.", "."): state[name] for name in state}
    return state | plain
