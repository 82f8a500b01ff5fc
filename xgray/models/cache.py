"""The cache folder on this machine, and folders in it that are made once."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xgray.storage.folder import write_aside

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust tell what the operating system said."""


def cache_folder() -> Path:
    return Path(os.environ.get("XGRAY_CACHE") or Path.home() / ".cache" / "xgray")


def make_once(target: Path, make: Callable[[Path], object]) -> Path:
    """The folder, which ``make`` fills under another name if it is not there; others of this machine wait for that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            with write_aside(target) as working:
                working.mkdir()
                make(working)
    return target


def save(part: Any, folder: Path) -> None:
    """Write a model or a tokenizer into a folder.

    Raises:
        OSError: the disk is full, or refuses otherwise.
    """
    try:
        part.save_pretrained(folder)
    except Exception as error:  # safetensors has a type of its own for it, tokenizers none at all
        refused = OS_ERROR.search(str(error))
        if refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(folder)) from error
