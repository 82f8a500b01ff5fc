"""Fingerprints: SHA-256 of canonical JSON, of files and of folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgray.storage.parse import check_regular

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: Any) -> str:
    """Return ``value`` as JSON text that is the same for equal values: keys sorted, no spaces.

    Raises:
        TypeError: ``value`` holds something without a stable text (a set, an object, a non-finite number).
    """
    try:
        return _ENCODER.encode(value)
    except ValueError as error:  # NaN or an infinity, at any depth
        raise TypeError(f"no fingerprint of a non-finite number: {error}") from None


def fingerprint(payload: dict[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of ``payload``, in hexadecimal."""
    return hashlib.sha256(canonical(payload).encode()).hexdigest()


def file_fingerprint(path: Path, only: Sequence[Path] | None = None) -> str:
    """Return the SHA-256 of a file, or of the names and contents of files below a folder, in hexadecimal.

    Args:
        path: the file or the folder.
        only: the folder's files that count, sorted; by default all below it.

    Raises:
        InputError: it is a device or a pipe.
    """
    digest = hashlib.sha256()
    check_regular(path)
    if only is not None:
        files: Sequence[Path] = only
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
