"""Task files for lm-evaluation-harness: YAML files of the user, and the files that they name.

Names in a task file are relative to its folder; they are made absolute, so that a worker finds the files from any
working directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xgray.errors import InputError
from xgray.storage.parse import check_merged, check_values, read_small_file


class _Loader(yaml.SafeLoader):
    """Reads the harness's ``!function module.name`` as the text ``module.name``."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        check_merged(node.value)


_Loader.add_multi_constructor("!", lambda loader, tag, node: loader.construct_scalar(node))


def is_task_file(task: str) -> bool:
    """Return whether an entry of ``capability.tasks`` is a file rather than a task's name."""
    return Path(task).suffix in (".yaml", ".yml")


def task_files(path: Path, including: tuple[Path, ...] = ()) -> list[Path]:
    """Return a task file and all files that it needs: included files, data files and modules of functions.

    Args:
        path: The task file.
        including: The files that include it, each included by the one before.

    Raises:
        InputError: a file is missing or includes itself, or a task file is not a YAML mapping.
    """
    including = (*including, path.resolve())
    if path.resolve() in including[:-1]:
        raise InputError(f"capability.tasks: {path}: the file includes itself: {' > '.join(map(str, including))}")
    config = _load(path)
    included = config.get("include", [])
    files = [path]
    for name in included if isinstance(included, list) else [included]:
        files += task_files(path.parent / str(name), including)
    files += [Path(name) for name in _strings(data_files(path, config)) if "://" not in name]
    # Any text may be the name of a function; it is if there is such a module.
    modules = (path.parent / f"{name.rpartition('.')[0].replace('.', '/')}.py" for name in _strings(config))
    files += [
        module for module in modules if os.path.isfile(module)
    ]  # unlike is_file, False for a name that is too long
    return list(dict.fromkeys(files))


def data_files(path: Path, config: dict[str, Any]) -> Any:
    """Return ``dataset_kwargs.data_files`` of a task with absolute paths.

    Args:
        path: The task file.
        config: Its content.

    Returns:
        A path, or lists and mappings of paths, as the task has it; None if it names no data files.

    Raises:
        InputError: a file is missing.
    """

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [absolute(inner) for inner in value]
        if "://" in str(value):
            return value
        file = path.parent / str(value)
        if not file.is_file():
            raise InputError(f"{path}: dataset_kwargs.data_files: no such file: {file}")
        return str(file.resolve())

    arguments = config.get("dataset_kwargs") or {}
    value = arguments.get("data_files") if isinstance(arguments, dict) else None
    return None if value is None else absolute(value)


def _load(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(read_small_file(path), _Loader)
        check_values(config)
    except OSError as error:
        raise InputError(f"capability.tasks: {path}: cannot read it: {error.strerror}") from None
    except RecursionError:
        raise InputError(f"capability.tasks: {path}: no valid YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"capability.tasks: {path}: no valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict):
        raise InputError(f"capability.tasks: {path}: a task is a mapping with the key 'task'")
    return config


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in nested lists and mappings."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, str):
        yield value
