"""Convert GGUF files into safetensors folders, once for each file's content.

The trainer and every engine then read the same weights.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xgray.errors import InputError
from xgray.models.cache import cache_folder, make_once, save
from xgray.models.complete import refuse_incomplete
from xgray.models.files import POINTER
from xgray.storage.fingerprint import file_fingerprint

log = logging.getLogger(__name__)

MAGIC = b"GGUF"
"""How every GGUF file begins."""
ADD_BOS_KEY = b"tokenizer.ggml.add_bos_token"
"""Key of the flag that says whether texts start with the beginning-of-text token."""
TRUE_ENTRY = b"\x07\0\0\0\x01"
"""What follows the key of a GGUF entry that is true: four bytes of type (7: bool) and the value."""


def convert_gguf(gguf: Path) -> Path:
    """Return the safetensors folder made from a GGUF file, in float32; it is made on first use.

    The folder lies in the cache under a name that depends on the file's content.

    Raises:
        InputError: the file is no whole GGUF file, or transformers does not read its architecture.
        OSError: the cache's disk is full, or refuses the files for another reason.
    """
    with gguf.open("rb") as stream:
        beginning = stream.read(len(POINTER))
    if beginning == POINTER:
        raise InputError(f"model.id: {gguf} is a Git LFS pointer and not the file itself. Run: git lfs pull")
    if not beginning.startswith(MAGIC):
        what = f"begins with {beginning[:4]!r}" if beginning else "is empty"
        raise InputError(f"model.id: {gguf} is no GGUF file: it {what}. Copy or download it again.")
    digest = file_fingerprint(gguf)
    target = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (target / "config.json").is_file():
        return target
    log.info("converting %s to safetensors (once)", gguf.name)
    return make_once(target, lambda folder: _convert(gguf, folder))


def quiet_deepspeed() -> None:
    """Keep DeepSpeed, which transformers imports with a model, from a warning about a missing GPU in the output."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _read(gguf: Path) -> tuple[Any, Any]:
    """Return the model and the tokenizer that transformers reads from a GGUF file.

    Raises:
        InputError: the file is damaged, lacks weights, or is of an architecture that transformers does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quiet_deepspeed()
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    try:
        with _parsing_once():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
    except MemoryError:
        raise
    except Exception as error:  # the readers of gguf and transformers raise whatever a damaged file leads them to
        reason = " ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise InputError(
            f"model.id: cannot read the GGUF file {gguf}: {reason}. Copy or download it again, or name the model's "
            "folder of safetensors"
        ) from None
    refuse_incomplete(str(gguf), info)
    return model, tokenizer


@contextlib.contextmanager
def _parsing_once() -> Iterator[None]:
    """While the block runs, remember what transformers would parse for configuration, model and tokenizer each.

    It also makes the map of all tensors' names again for each module. Together that is half of the time.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """A reader that takes its slices, some for each token of the vocabulary, from a plain array."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, memory_map: Any) -> None:
            self._data = memory_map.view(np.ndarray)  # a slice of a memory map takes four times as long

    faster: dict[str, Callable[..., Any]] = {"GGUFReader": Reader, "get_tensor_name_map": gguf.get_tensor_name_map}
    functions = {name: getattr(gguf, name) for name in faster}
    for name, function in faster.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(gguf, name, function)


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    loaded, tokenizer = _read(gguf)
    # save_pretrained refuses a model that was loaded from GGUF, so its weights move into a plain model.
    values = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = loaded.config.__class__(**values)
    config.dtype = torch.float32
    with torch.device("meta"):  # so that no random weights are drawn
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    save(plain, target)
    if _adds_bos(gguf) and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        # transformers drops this flag, and Gemma writes nonsense without its first token.
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    save(tokenizer, target)


def _adds_bos(gguf: Path) -> bool:
    """Return whether texts start with the beginning-of-text token, without parsing the rest of the file."""
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        key = content.find(ADD_BOS_KEY)
        start = key + len(ADD_BOS_KEY)
        return key >= 0 and content[start : start + len(TRUE_ENTRY)] == TRUE_ENTRY
