"""Limits at the boundary where files and texts from outside become values.

A file is regular and of a known size before it is read, so that reading it has an end; what a text says is no deeper
and no larger than anything that xgray reads.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sized
from pathlib import Path
from typing import Any

from xgray.errors import InputError

MAX_DEPTH = 64
"""Mappings and lists within each other."""
MAX_VALUES = 200_000
"""Values in a text that a person writes. With aliases a few lines of YAML may stand for billions."""
MAX_BYTES = 2**24
"""Size of a file that a person writes."""


def check_regular(path: Path) -> None:
    """Check that a path which is no folder is a regular file: a device or a pipe may have no end.

    Raises:
        InputError: it is something else.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"{path}: not a regular file; a device or a pipe may have no end. Name a file, or copy it")


def read_small_file(path: Path) -> bytes:
    """Return the content of a file that a person writes.

    Raises:
        InputError: it is not a regular file, or too large to be one.
        OSError: it cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    check_regular(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{path}: {size:,} bytes are too many for such a file ({MAX_BYTES:,} at most). Is it another?")
    return path.read_bytes()


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_values(value: Any) -> None:
    """Check that a value can be handled and written to a file, whatever it is.

    Raises:
        ValueError: it is too deep, too large or holds itself, a number in it needs more than 64 bits, or a text in it
            holds half of a surrogate pair.
    """
    num_values = 0
    level = [value]
    for _ in range(MAX_DEPTH):
        num_values += len(level)
        if num_values > MAX_VALUES:
            raise ValueError(f"it stands for more than {MAX_VALUES:,} values; write out what its aliases stand for")
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper += item.keys()
                deeper += item.values()
            elif isinstance(item, (list, tuple, set)):
                deeper += item
            elif isinstance(item, str) and not item.isascii():
                check_text(item)
            elif isinstance(item, int) and abs(item) >= 2**63:
                raise ValueError("a number needs more than 64 bits")
            if len(deeper) > MAX_VALUES:
                break
        level = deeper
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def check_merged(fields: Sized) -> None:
    """Check the fields of a YAML mapping into which others were merged (``<<: *name``), again and again.

    Raises:
        ValueError: there are too many.
    """
    if len(fields) > MAX_VALUES:
        raise ValueError(f"its merges stand for more than {MAX_VALUES:,} values; write out what they stand for")


def check_text(text: str) -> None:
    """Check that a file can hold a text.

    Raises:
        ValueError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which no file can store") from None
