"""The files of a model's folder: which of them matter, what their headers say, and which are refused.

Nothing here imports torch, so that a folder is examined in milliseconds, before anything starts.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xgray.errors import InputError
from xgray.models.cache import cache_folder, make_once
from xgray.storage.fingerprint import file_fingerprint

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Patterns of files of weights that are pickles, which can run code when they are read."""
NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")
"""Patterns of pickles beside the weights, which are left alone."""

CONFIGURATIONS = ("config.json", INDEX, ADAPTER_CONFIG, "tokenizer_config.json", "generation_config.json")
"""Small JSON files, which libraries read without a line for the user when they are damaged."""
MODEL_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".tiktoken", ".spm", ".bpe", ".vocab"}
VOCABULARIES = {"vocab.txt", "merges.txt"}
REPORTS = {"trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "test_results.json"}
"""JSON files that a training leaves beside a model and that no library loads."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS has not fetched."""
HEADER_LIMIT = 100_000_000
"""The largest header of a safetensors file, as the library has it."""
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch's wrappers put in: no architecture has a module of these names."""
PARALLEL = "module."
"""What ``DataParallel`` and DeepSpeed put before every name."""


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model's folder that decide what is loaded: weights, configuration and tokenizer.

    Documentation, a download's metadata, optimizer states, pickles and code are left out: nothing reads them.
    """

    def matters(file: Path) -> bool:
        parts = file.relative_to(folder).parts
        if len(parts) > 1 and parts[0] != "additional_chat_templates":
            return False
        is_part = file.suffix in MODEL_SUFFIXES or file.name in VOCABULARIES
        return is_part and file.name not in REPORTS and not file.name.startswith(".")

    return sorted(file for file in folder.rglob("*") if file.is_file() and matters(file))


def has_tokenizer(folder: Path) -> bool:
    """Return whether the folder holds a tokenizer."""
    names = {file.name for file in model_files(folder)}
    return bool(names & {"tokenizer.json", "tokenizer_config.json", "vocab.json", *VOCABULARIES}) or any(
        name.endswith((".model", ".tiktoken", ".spm")) for name in names
    )


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are Git LFS pointers or damaged JSON, or whose weights are pickles only.

    Raises:
        InputError: names the file, and the command that fetches or converts it.
    """
    for file in model_files(folder):
        with file.open("rb") as stream:
            if stream.read(len(POINTER)) == POINTER:
                raise InputError(
                    f"model.id: {file} is a Git LFS pointer and not the file itself, which was not fetched. "
                    f"Run: git -C {folder} lfs pull"
                )
    for name in CONFIGURATIONS:
        if (folder / name).is_file():
            read_json(folder / name)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    target = folder / (ADAPTER_WEIGHTS if is_adapter else WEIGHTS)
    if target.is_file() or (folder / INDEX).is_file():
        return
    left_alone = {file for pattern in NO_WEIGHTS for file in folder.glob(pattern)}
    pickles = sorted({file for pattern in PICKLES for file in folder.glob(pattern)} - left_alone)
    if pickles:
        raise InputError(
            f"model.id: {folder} holds its weights as a pickle ({pickles[0].name}), which could run code when it is "
            f"read. Convert it once: {conversion(pickles, target)}"
        )


def conversion(pickles: Iterable[Path], target: Path) -> str:
    """Return the command that writes the tensors of pickles, and nothing else of them, as safetensors."""
    names = [str(file) for file in pickles]
    return (
        'python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone().contiguous() for f in {names} "
        "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
        f"'{target}', {{'format': 'pt'}})\""
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that a whole model's weights are read from.

    Raises:
        InputError: there are none, or one that the index names is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(weight_map(folder / INDEX).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(
                f"cannot load the model {str(folder)!r}: {INDEX} names {len(names)} files, and {missing[0]} is missing"
                f"{f' with {len(missing) - 1} more' if missing[1:] else ''}. Copy or download the folder again."
            )
        return [folder / name for name in names]
    check_files(folder)
    if ggufs := sorted(folder.glob("*.gguf")):
        raise InputError(f"model.id: {folder} holds no {WEIGHTS}, but a GGUF file. Name the file: {ggufs[0]}")
    raise InputError(f"cannot load the model {str(folder)!r}: it holds no weights ({WEIGHTS} or {INDEX})")


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file of a model holds.

    Raises:
        InputError: it holds none.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"model.id: {file} is damaged ({reason}). Copy or download it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"model.id: {file} is damaged (no mapping of names). Copy or download it again.")
    return content


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each weight, by name, as the index of several files says.

    Raises:
        InputError: the index is damaged.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise InputError(f"{index} is damaged (no weight_map from names to files). Copy or download it again.")
    return files


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file from its header alone.

    Raises:
        InputError: the header cannot be read, or the file is shorter or longer than it says.
    """
    header, start = _header(file)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if file.stat().st_size != start + end:
        raise InputError(
            f"cannot load the model {str(file.parent)!r}: {file.name} has {file.stat().st_size} bytes, but its header "
            f"says {start + end}, so it is cut off or damaged. Copy or download it again."
        )
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's entries, without its metadata, and where the tensors begin."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size) if 0 < size <= HEADER_LIMIT else b""
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if not all(math.prod(entry["shape"]) >= 0 <= entry["data_offsets"][1] for entry in entries.values()):
            raise ValueError("negative sizes")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        raise InputError(
            f"cannot load the model {str(file.parent)!r}: {file.name} does not begin with a safetensors header, so it "
            "is empty, cut off or of another kind. Copy or download it again."
        ) from None
    return entries, 8 + size


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names of a model's weights without what torch's wrappers put in, for each name that has it.

    ``_orig_mod.`` (``torch.compile``) and the wrappers of FSDP are taken out wherever they stand; ``module.`` (DDP)
    only where every name begins with it. Names that would become equal are left as they are.
    """
    given = list(names)
    plain = [WRAPPERS.sub("", name) for name in given]
    if plain and all(name.startswith(PARALLEL) for name in plain):
        plain = [name.removeprefix(PARALLEL) for name in plain]
    if len(set(plain)) < len(plain):
        return {}
    return {old: new for old, new in zip(given, plain, strict=True) if old != new}


def plain_folder(folder: Path) -> Path:
    """Return the folder, or a copy in the cache where torch's wrappers changed the names of its weights.

    Engines would take weights of other names for missing ones, and draw them at random.
    """
    if not ((folder / WEIGHTS).is_file() or (folder / INDEX).is_file()):
        return folder
    files = weight_files(folder)
    renamed = plain_names(name for file in files for name in tensor_shapes(file))
    if not renamed:
        return folder
    _say(folder, *next(iter(renamed.items())))
    target = cache_folder() / "models" / f"{folder.name}-{file_fingerprint(folder, model_files(folder))[:16]}-plain"
    return make_once(target, lambda working: _rename(folder, files, renamed, working))


@functools.cache
def _say(folder: Path, old: str, new: str) -> None:
    """Log once in each process that a model's weights are read under other names."""
    log.warning("model %s: the names of its weights lose what torch put in: %s is read as %s", folder, old, new)


def _rename(folder: Path, files: list[Path], renamed: dict[str, str], target: Path) -> None:
    """Copy a model's folder with other names of its weights."""
    for file in model_files(folder):
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        if file not in files:
            shutil.copyfile(file, copy)
    for file in files:
        entries, start = _header(file)
        header = {renamed.get(name, name): entry for name, entry in entries.items()}
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        with file.open("rb") as source, (target / file.name).open("wb") as stream:
            source.seek(start)
            stream.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(source, stream, 1 << 24)
    if (target / INDEX).is_file():
        index = read_json(target / INDEX)
        index["weight_map"] = {renamed.get(name, name): file for name, file in index["weight_map"].items()}
        (target / INDEX).write_text(json.dumps(index), "utf-8")
