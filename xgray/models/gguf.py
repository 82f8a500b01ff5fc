"""Convert GGUF files into safetensors folders, once for each file's content."""

from __future__ import annotations

import logging
import mmap
import os
from pathlib import Path

from xgray.models.cache import cache_folder, make_once, save
from xgray.storage.fingerprint import file_fingerprint

log = logging.getLogger(__name__)


def converted(gguf: Path) -> Path:
    """The safetensors folder made of a GGUF file, in the cache by content; made on first use.

    Raises:
        OSError: the cache's disk is full, or refuses otherwise.
    """
    digest = file_fingerprint(gguf)
    target = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (target / "config.json").is_file():
        return target
    log.info("converting %s to safetensors (once)", gguf.name)
    return make_once(target, lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, warns that it is so
    folder, name = str(gguf.parent), gguf.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # save_pretrained refuses a model that was loaded from GGUF, so its weights move into a plain one.
    config = loaded.config.__class__(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    save(plain, target)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if _adds_bos(gguf) and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]:
        # transformers drops this flag; Gemma without its first token writes nonsense.
        from tokenizers.processors import TemplateProcessing

        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    save(tokenizer, target)


def _adds_bos(gguf: Path) -> bool:
    """Whether texts are to start with the beginning-of-text token: one flag of the file, without parsing the rest."""
    key = b"tokenizer.ggml.add_bos_token"
    with gguf.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # A GGUF entry is its key, four bytes of type (7: bool) and its value.
        start = content.find(key) + len(key)
        return start >= len(key) and content[start : start + 5] == b"\x07\0\0\0\x01"
