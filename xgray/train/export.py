"""A training's result as others load it: ``adapter/`` (PEFT) and ``merged/`` (a whole model), both safetensors.

A folder is written under a temporary name and renamed when it is complete, so one that is there is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from xgray.config import Model
from xgray.models.cache import cache_folder, save
from xgray.models.load import load_tokenizer
from xgray.models.source import is_adapter, model_fingerprint, resolve
from xgray.storage.checksums import CONTENTS, move_with_checksums
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder, write_aside

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export(model: str, revision: str | None, checkpoint: Path, output: Path) -> None:
    """Write the checkpoint's model below ``output``: ``adapter/`` where it is one, and ``merged/``.

    An adapter is merged in float32 into the base model as it is stored, and kept in the base model's own precision; the
    4-bit weights of a QLoRA training are neither merged into nor served with. A folder that is there is left as it is.

    Args:
        model: The base model, as ``from_pretrained`` takes it.
        checkpoint: A folder that the trainer saved.

    Raises:
        OSError: the disk is full, or refuses otherwise.
    """
    if is_adapter(str(checkpoint)):
        _whole(output / "adapter", lambda folder: _copy_adapter(checkpoint, folder))
        _whole(output / "merged", lambda folder: _merge(model, revision, checkpoint, folder))
    else:
        _whole(output / "merged", lambda folder: _save_again(model, revision, checkpoint, folder))


def merged(model: Model, adapter: str, folder: Folder) -> str:
    """The adapter merged into the model, by content in ``folder``, as a local folder or its URI; made on first use.

    Raises:
        OSError: a disk is full, or refuses otherwise.
    """
    identity = {"model": model_fingerprint(model), "adapter": file_fingerprint(Path(adapter))}
    target = folder / fingerprint(identity)[:16]

    def merge(working: Path) -> None:
        _merge(resolve(model), model.revision, Path(adapter), working)

    if target.local is not None:
        _whole(target.local, merge)
    elif not target.exists(CONTENTS):
        whole = cache_folder() / "merged" / target.name
        _whole(whole, merge)
        move_with_checksums(whole, target)
    return target.uri


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    if target.exists():
        return
    with write_aside(target) as working:
        working.mkdir()
        write(working)


def _copy_adapter(source: Path, target: Path) -> None:
    for name in ADAPTER_FILES:
        shutil.copy(source / name, target)


def _save_again(model: str, revision: str | None, checkpoint: Path, target: Path) -> None:
    """The base model with the checkpoint's weights, which are all of its weights, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from xgray.train.state import load_weights

    tuned = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=torch.float32)
    load_weights(tuned, checkpoint)
    save(tuned, target)
    save(load_tokenizer(model, revision), target)


def _merge(model: str, revision: str | None, adapter: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = AutoConfig.from_pretrained(model, revision=revision).dtype or torch.float32
    base = AutoModelForCausalLM.from_pretrained(model, revision=revision, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(adapter))
    head = base.get_output_embeddings()
    if isinstance(head, BaseTunerLayer) and base.config.tie_word_embeddings:
        # The adapters of the embeddings and of the head differ, so the merged weights are tied no more.
        layer = head.get_base_layer()
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        base.config.tie_word_embeddings = False
    save(adapted.merge_and_unload().to(stored), target)
    save(load_tokenizer(model, revision), target)
