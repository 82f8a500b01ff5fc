"""Options that several commands share, and how a command's arguments become an experiment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.config import Experiment
    from xgray.storage.folder import Folder

Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""Paths; an option that no parameter takes ends here too, and is refused as an unknown field."""
Json = Annotated[bool, Parameter("--json", negative=(), show_default=False)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
DEFAULT_STORE = "runs/scores"


def is_experiment_file(path: str) -> bool:
    """Whether a path is that of an experiment file, by its ending."""
    return Path(path).suffix in (".yaml", ".yml")


def read_experiment(
    paths: Sequence[str], overrides: dict[str, Any], section: str | None = None
) -> tuple[Experiment, Folder | None] | None:
    """Return the experiment of one experiment file or run directory, and the directory where it is one.

    A run is the directory that was named, whatever name and place its ``experiment.yaml`` has: it may be a copy, or
    have been moved.

    Args:
        paths: the command's positional arguments.
        overrides: nested fields that are laid over the experiment.
        section: a section that is turned on, with its defaults, where the experiment lacks it.

    Returns:
        None if ``paths`` is not one experiment file or run directory.

    Raises:
        InputError: the file or a field is wrong.
    """
    from xgray.config import Experiment, merge, validate
    from xgray.config.file import load_experiment
    from xgray.config.protocol import without_default_switches
    from xgray.runs.resolved import load_run
    from xgray.storage.folder import Folder

    if len(paths) != 1:
        return None
    path = paths[0]
    if is_experiment_file(path):
        experiment = load_experiment(Path(path), overrides)
        if section and getattr(experiment, section) is None:
            experiment = load_experiment(Path(path), merge({section: {}}, overrides))
        return experiment, None
    folder = Folder(path)
    if not folder.exists("experiment.yaml"):
        return None
    experiment = load_run(folder)
    resolved = without_default_switches(experiment.model_dump(mode="json"), Experiment) | _place(experiment, folder)
    if section and resolved[section] is None:
        resolved[section] = {}
    return validate(Experiment, merge(resolved, overrides), path), folder


def _place(experiment: Experiment, folder: Folder) -> dict[str, str]:
    """Return the fields ``name`` and ``runs`` with which the experiment's run directory is ``folder``."""
    from xgray.config import Experiment, validate
    from xgray.storage.folder import Folder

    if not folder.name or folder.name == "..":
        folder = Folder(str(Path(folder.uri).resolve()))
    place = {"name": folder.name}
    if not _is_same(Folder(experiment.runs), folder.parent):
        place["runs"] = folder.parent.uri
    validate(Experiment, {"model": {"id": "unused"}} | place, f"{folder}: the folder's name is the run's")
    return place


def _is_same(folder: Folder, other: Folder) -> bool:
    if folder.local is None or other.local is None:
        return folder.uri == other.uri
    return folder.local.exists() and folder.local.samefile(other.local)


@contextlib.contextmanager
def paths_of_run(folder: Folder) -> Iterator[None]:
    """While the block plans a run from its directory, let errors say where the run's relative paths start.

    They start at the working directory in which the run was begun, which the run's place tells: ``/home/me/project`` of
    ``/home/me/project/runs/base``.
    """
    from xgray.runs.resolved import load_run

    try:
        yield
    except InputError as error:
        runs = Path(load_run(folder).runs)
        parent = folder.parent.local
        if parent is None or runs.is_absolute() or parent.parts[-len(runs.parts) :] != runs.parts:
            raise
        start = Path(*parent.parts[: -len(runs.parts)])
        if start == Path.cwd():
            raise
        raise type(error)(f"{error}. Relative paths of this run start at {start}: run the command there") from None
