"""Export a training's result as safetensors: ``adapter/`` (PEFT), or ``merged/`` (a whole model) of a full training.

An adapter is merged when something needs whole weights: an engine that cannot apply it, or a look inside the network.
A folder is written under a temporary name and renamed when it is complete, so a folder that exists is complete.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xgray.config import Model
from xgray.models.cache import cache_folder, save
from xgray.models.complete import check_adapter, stored_files
from xgray.models.load import check_loadable, load_config, load_skeleton, load_tokenizer
from xgray.models.source import folder_fingerprint, is_adapter, local_weights, model_fingerprint, resolve
from xgray.storage.checksums import CONTENTS, move_with_checksums
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder, write_aside

log = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export(model: str, revision: str | None, checkpoint: Path, output: Path) -> None:
    """Write the checkpoint's model below ``output``: ``adapter/`` if an adapter was trained, otherwise ``merged/``.

    Folders that exist are left as they are.

    Args:
        model: The base model, as ``from_pretrained`` takes it.
        revision: The base model's commit on the hub.
        checkpoint: A folder that the trainer saved.
        output: The folder of the training stage.

    Raises:
        OSError: the disk is full, or refuses the files for another reason.
    """
    if is_adapter(str(checkpoint)):
        check_adapter(checkpoint, check_loadable(model, revision))
        _write_once(output / "adapter", lambda folder: _copy_adapter(checkpoint, folder))
    else:
        _write_once(output / "merged", lambda folder: _save_tuned(model, revision, checkpoint, folder))


def merge_adapter(model: Model, adapter: str, folder: Folder) -> str:
    """Merge an adapter into a model, once for the contents of both.

    Args:
        model: The base model.
        adapter: A local folder with a PEFT adapter.
        folder: Where merged models are kept, each under a name that depends on the contents.

    Returns:
        The merged model's local folder, or its URI.

    Raises:
        OSError: a disk is full, or refuses the files for another reason.
    """
    return merge_into(model, adapter, folder / _identity(model, adapter))


def merge_into(model: Model, adapter: str, target: Folder) -> str:
    """Merge an adapter into a model, unless ``target`` holds the result already.

    The adapter is merged in float32 into the base model as it is stored, and the result has the base model's precision.
    The 4-bit weights of a QLoRA training are used neither for merging nor for sampling.

    Args:
        model: The base model.
        adapter: A folder with a PEFT adapter, local or behind a URI.
        target: The merged model's folder.

    Returns:
        The merged model's local folder, or its URI.

    Raises:
        OSError: a disk is full, or refuses the files for another reason.
    """

    def merge(working: Path) -> None:
        _merge(resolve(model), model.revision, Path(local_weights(adapter)), working)

    if target.local is not None:
        _write_once(target.local, merge)
    elif not target.exists(CONTENTS):
        merged = cache_folder() / "merged" / _identity(model, local_weights(adapter))
        _write_once(merged, merge)
        move_with_checksums(merged, target)
    return target.uri


def _identity(model: Model, adapter: str) -> str:
    """Return a name for the merged model that depends on the contents of the model and of the adapter's folder."""
    return fingerprint({"model": model_fingerprint(model), "adapter": folder_fingerprint(Path(adapter))})[:16]


def _write_once(target: Path, write: Callable[[Path], None]) -> None:
    if target.exists():
        return
    with write_aside(target) as working:
        working.mkdir()
        write(working)


def _copy_adapter(source: Path, target: Path) -> None:
    for name in ADAPTER_FILES:
        shutil.copy(source / name, target)


def _save_tuned(model: str, revision: str | None, checkpoint: Path, target: Path) -> None:
    """Save the base model in float32 with the checkpoint's weights in place of all of its own."""
    from xgray.train.state import load_weights

    tuned = _load_whole(model, revision)
    load_weights(tuned, checkpoint)
    save(tuned, target)
    save(load_tokenizer(model, revision), target)


def _load_whole(model: str, revision: str | None) -> Any:
    """Load the base model in float32, with its own generation config, which is saved with the result.

    Raises:
        InputError: weights are missing, unexpected or of another shape.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_loadable(model, revision)
    return AutoModelForCausalLM.from_pretrained(
        model, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )


def _merge(model: str, revision: str | None, adapter: Path, target: Path) -> None:
    """Merge an adapter row by row where that is possible, otherwise in a model that is loaded whole."""
    import torch

    from xgray.train.merge import plan_merge, write_merged

    plain = check_loadable(model, revision)
    adapted = check_adapter(adapter, load_skeleton(model, revision))
    dtype = load_config(model, revision).dtype or torch.float32
    if _has_adapted_head(adapted):
        # The adapters of the embeddings and of the head differ, so the merged weights can no longer be tied.
        plain.config.tie_word_embeddings = False
    weights = plan_merge(adapted, plain, adapter, stored_files(model, revision))
    if isinstance(weights, str):
        log.info("merging the adapter into the whole model in memory: %s", weights)
        save(_merge_whole(model, revision, adapter, plain.config.tie_word_embeddings).to(dtype), target)
    else:
        write_merged(weights, dtype, target)
        _save_configuration(plain, model, revision, dtype, target)
    save(load_tokenizer(model, revision), target)


def _has_adapted_head(adapted: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(adapted.get_base_model().get_output_embeddings(), BaseTunerLayer)


def _save_configuration(plain: Any, model: str, revision: str | None, dtype: Any, target: Path) -> None:
    """Write what ``save_pretrained`` writes beside the weights."""
    from transformers import GenerationConfig

    plain.config.dtype = str(dtype).removeprefix("torch.")
    plain.config.architectures = [type(plain).__name__]
    plain.config.save_pretrained(target)
    try:
        generation_config = GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # the model has none
        generation_config = plain.generation_config
    generation_config.save_pretrained(target)


def _merge_whole(model: str, revision: str | None, adapter: Path, is_tied: bool) -> Any:
    """Return the merged model in float32, merged by PEFT."""
    import torch
    from peft import PeftModel

    base = _load_whole(model, revision)
    adapted = PeftModel.from_pretrained(base, str(adapter))
    if base.config.tie_word_embeddings and not is_tied:
        layer = base.get_output_embeddings().get_base_layer()
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        base.config.tie_word_embeddings = False
    return adapted.merge_and_unload()
