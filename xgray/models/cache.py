"""The cache folder of this machine, and how models get into it.

The folder is ``XGRAY_CACHE``, by default ``~/.cache/xgray``.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xgray.storage.folder import write_aside

RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""Finds the errno in messages of libraries written in Rust (safetensors, tokenizers): ``(os error 28)``."""


def cache_folder() -> Path:
    """Return the folder for what can be made again: converted and copied weights, reference log-probabilities."""
    return Path(os.environ.get("XGRAY_CACHE") or Path.home() / ".cache" / "xgray")


def make_once(target: Path, make: Callable[[Path], object]) -> Path:
    """Make a folder unless it exists, and return it; other processes of this machine wait meanwhile.

    Args:
        target: The folder. It appears only when it is complete.
        make: Fills an empty folder whose path it is given.
    """
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
        OSError: the disk is full, or refuses the files for another reason.
    """
    try:
        part.save_pretrained(folder)
    except Exception as error:  # safetensors raises a type of its own, tokenizers a plain Exception
        errno = RUST_ERRNO.search(str(error))
        if errno is None:
            raise
        number = int(errno[1])
        raise OSError(number, os.strerror(number), str(folder)) from error
