"""Convert GGUF files into safetensors folders, once for each file's content.

The trainer and every engine then read the same weights.
"""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from xgray.models.cache import cache_folder, make_once, save
from xgray.storage.fingerprint import file_fingerprint

log = logging.getLogger(__name__)

ADD_BOS_KEY = b"tokenizer.ggml.add_bos_token"
"""Key of the flag that says whether texts start with the beginning-of-text token."""
TRUE_ENTRY = b"\x07\0\0\0\x01"
"""What follows the key of a GGUF entry that is true: four bytes of type (7: bool) and the value."""


def convert_gguf(gguf: Path) -> Path:
    """Return the safetensors folder made from a GGUF file, in float32; it is made on first use.

    The folder lies in the cache under a name that depends on the file's content.

    Raises:
        OSError: the cache's disk is full, or refuses the files for another reason.
    """
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


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quiet_deepspeed()
    folder, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # save_pretrained refuses a model that was loaded from GGUF, so its weights move into a plain model.
    values = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = loaded.config.__class__(**values)
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    save(plain, target)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
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
