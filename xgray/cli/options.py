"""Options that several commands share, and how a command's arguments become an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

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
    resolved = without_default_switches(load_run(folder).model_dump(mode="json"), Experiment)
    if section and resolved[section] is None:
        resolved[section] = {}
    return validate(Experiment, merge(resolved, overrides), path), folder
