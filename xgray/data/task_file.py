"""Tasks of one's own for lm-evaluation-harness: YAML files, and the files that they name.

Names in a task file are relative to its folder, so that a worker finds them wherever it runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xgray.errors import InputError


class _Loader(yaml.SafeLoader):
    """Reads the harness's ``!function`` as the name that stands behind it."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: loader.construct_scalar(node))


def is_task_file(task: str) -> bool:
    """Whether an entry of ``capability.tasks`` is a file rather than a name."""
    return Path(task).suffix in (".yaml", ".yml")


def task_files(path: Path) -> list[Path]:
    """The file itself, and the files that it includes, takes functions from or reads its questions from.

    Raises:
        InputError: one of them is missing, or the file is no YAML mapping.
    """
    config = _read(path)
    included = config.get("include", [])
    files = [path]
    for one in included if isinstance(included, list) else [included]:
        files += task_files(path.parent / one)
    files += [Path(one) for one in _leaves(data_files(path, config)) if "://" not in one]
    modules = (path.parent / f"{one.rpartition('.')[0].replace('.', '/')}.py" for one in _leaves(config))
    return list(dict.fromkeys([*files, *(one for one in modules if os.path.isfile(one))]))


def data_files(path: Path, config: dict[str, Any]) -> Any:
    """``dataset_kwargs.data_files`` of a task, a name or lists and mappings of them, with whole paths; None without.

    Raises:
        InputError: a file is missing.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: whole(one) for key, one in value.items()}
        if isinstance(value, list):
            return [whole(one) for one in value]
        if "://" in str(value):
            return value
        found = path.parent / str(value)
        if not found.is_file():
            raise InputError(f"{path}: dataset_kwargs.data_files: no such file: {found}")
        return str(found.resolve())

    named = (config.get("dataset_kwargs") or {}).get("data_files")
    return None if named is None else whole(named)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_bytes(), _Loader)
    except OSError as error:
        raise InputError(f"capability.tasks: {path}: cannot read it: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"capability.tasks: {path}: no valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise InputError(f"capability.tasks: {path}: a task is a mapping with the key 'task'")
    return config


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value
