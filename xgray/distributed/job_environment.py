"""What Ray tells the driver of a job about it, in the driver's environment."""

from __future__ import annotations

import json
import os

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_job() -> bool:
    """Whether this process is the driver of a Ray job, whose working directory is a copy on the cluster's head."""
    return JOB_VARIABLE in os.environ


def job_variables() -> dict[str, str]:
    """The environment variables that the job was submitted with, for its driver and its workers."""
    job = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    variables: dict[str, str] = job.get("runtime_env", {}).get("env_vars", {})
    return variables
