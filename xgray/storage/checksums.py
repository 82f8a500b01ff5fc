"""Folders of several files that count only as a whole: checkpoints, a model's weights.

    FOLDER/...              the files
    FOLDER/contents.json    their sizes and SHA-256, written last

A folder without its list is unfinished; one that does not agree with it is damaged.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from xgray.storage.folder import DamagedError, Folder

CONTENTS = "contents.json"


def move_with_checksums(source: Path, target: Folder, **about: Any) -> None:
    """Move all files below a local folder to ``target``, and list them there, with whatever else the list is to say."""
    files = {}
    for file in sorted(one for one in source.rglob("*") if one.is_file()):
        name = file.relative_to(source).as_posix()
        files[name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        target.move_in(name, file)
    target.write_json(CONTENTS, {"files": files, **about})
    shutil.rmtree(source)


def fetch_verified(source: Folder, target: Path) -> Path:
    """The sealed folder as a local one: itself where it is local, otherwise copied to ``target``; checked file by file.

    Raises:
        DamagedError: it is not as it was sealed.
        FileNotFoundError: it was never finished.
    """
    files: dict[str, dict[str, Any]] = source.read_json(CONTENTS)["files"]
    folder = source.local or target
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{CONTENTS} names a file outside: {name}")
    for name, told in files.items():
        file = folder / name
        try:
            if source.local is None:
                source.fetch(name, file)
            size = file.stat().st_size
        except FileNotFoundError:
            raise DamagedError(f"{name} is missing") from None
        if size != told["bytes"]:
            raise DamagedError(f"{name} has {size} bytes of {told['bytes']}")
        if _digest(file) != told["sha256"]:
            raise DamagedError(f"the content of {name} has changed")
    return folder


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
