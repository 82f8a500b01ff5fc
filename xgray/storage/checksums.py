"""Folders of several files that count only as a whole, such as checkpoints and a model's weights.

    FOLDER/...              the files
    FOLDER/contents.json    their sizes and SHA-256, written last

A folder without ``contents.json`` is unfinished; a folder that differs from it is damaged.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from xgray.storage.folder import DamagedError, Folder

CONTENTS = "contents.json"


def move_with_checksums(source: Path, target: Folder, **extra: Any) -> None:
    """Move all files below a local folder to ``target``, then write their checksums there.

    Args:
        extra: Further entries of ``contents.json``.
    """
    files = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        target.move_in(name, file)
    target.write_json(CONTENTS, {"files": files, **extra})
    shutil.rmtree(source)


def fetch_verified(source: Folder, target: Path) -> Path:
    """Return the folder as a local path, after checking every file against its checksum.

    Args:
        source: A folder written by :func:`move_with_checksums`.
        target: Where its files are copied if ``source`` is behind a URI; a local ``source`` is returned itself.

    Raises:
        DamagedError: a file is missing or has changed.
        FileNotFoundError: the folder is unfinished.
    """
    files: dict[str, dict[str, Any]] = source.read_json(CONTENTS)["files"]
    folder = source.local or target
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{CONTENTS} names a file outside: {name}")
    for name, expected in files.items():
        file = folder / name
        try:
            if source.local is None:
                source.fetch(name, file)
            num_bytes = file.stat().st_size
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if num_bytes != expected["bytes"]:
            raise DamagedError(f"{name} has {num_bytes} bytes of {expected['bytes']}")
        if _sha256(file) != expected["sha256"]:
            raise DamagedError(f"the content of {name} has changed")
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
