"""Read the resolved experiment of a run directory."""

from __future__ import annotations

from typing import Any

from xgray.config import Experiment, validate
from xgray.errors import InputError
from xgray.storage.folder import Folder


def load_run(run: Folder) -> Experiment:
    """The experiment of a run directory, as it was resolved.

    Raises:
        InputError: there is no run here, or its file is damaged or another version's.
    """
    import yaml

    if not run.exists("experiment.yaml"):
        raise InputError(f"{run}: no run here (experiment.yaml is missing)")
    file = str(run / "experiment.yaml")
    remedy = "delete it and run the experiment again: it is written anew, and finished stages stay"
    try:
        values: Any = yaml.safe_load(run.read_bytes("experiment.yaml"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2024-31-12, which is no date
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{file}{line} is damaged (no YAML); {remedy}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is damaged (no mapping of sections); {remedy}")
    try:
        experiment: Experiment = validate(Experiment, values, file)
    except InputError as error:
        what = "; ".join(str(error).splitlines())
        raise InputError(f"{what}; where another version wrote it, {remedy}") from None
    return experiment
