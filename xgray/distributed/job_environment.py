"""What a driver finds about its Ray job in its environment, and the working directory that its workers take over."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from xgray.config import Model, Section
from xgray.models.source import path_for_workers

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_job() -> bool:
    """Return whether this process is the driver of a Ray job.

    The working directory of such a driver is a copy on the cluster's head.
    """
    return JOB_VARIABLE in os.environ


def job_variables() -> dict[str, str]:
    """Return the environment variables that the job was submitted with, for its driver and its workers."""
    job = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    variables: dict[str, str] = job.get("runtime_env", {}).get("env_vars", {})
    return variables


def with_absolute_paths(argument: Any) -> Any:
    """Return a worker's argument with the paths of models made absolute, in sections too; anything else as it is.

    A worker whose machine lacks the driver's working directory would look for them elsewhere.

    Raises:
        InputError: a model's folder, file or package does not exist.
    """
    if isinstance(argument, Model):
        return argument.model_copy(update={"id": path_for_workers(argument)})
    if isinstance(argument, Section):
        inner = {name: with_absolute_paths(value) for name, value in argument if isinstance(value, Section)}
        return argument.model_copy(update=inner)
    return argument


def enter_directory(directory: str) -> None:
    """Make the driver's working directory this worker's, so that relative paths of the experiment mean the same.

    Ray's workers start in the directory that Ray was started in. A machine that lacks the folder keeps its own.
    """
    with contextlib.suppress(OSError):
        os.chdir(directory)
