"""The command that hands a run to a cluster: ``xgray submit``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from xgray.errors import InputError, StageError

if TYPE_CHECKING:
    from xgray.config import Experiment


Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]


def submit(*arguments: Arguments, address: str | None = None) -> int:
    """Run an experiment as a Ray job on a cluster, and show its log until it ends.

    Submitted again it goes on where it stopped; while it runs, its log is shown. An interrupt leaves the job alone.
    The job gets a copy of the working directory. Keys stay here: the cluster has its own.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml and fields to change: --section.field VALUE.
    address
        The cluster's dashboard, http://HEAD:8265; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
    """
    from xgray.config.file import load_experiment, parse_overrides, split

    positional, options = split(arguments)
    if len(positional) != 1 or Path(positional[0]).suffix not in (".yaml", ".yml"):
        raise InputError("name one experiment file: xgray submit EXPERIMENT.yaml --address http://HEAD:8265")
    file = Path(positional[0])
    experiment = load_experiment(file, parse_overrides(options))
    check_folders(experiment)
    from xgray.distributed.keys import KEYS
    from xgray.distributed.submit import follow, submit_job
    from xgray.experiment.plan import run_folder

    if here := [name for name in KEYS if name in os.environ]:
        _say(f"{' '.join(here)}: not sent; where the run needs them, they are set in the environment of the head node")
    job = submit_job(file, options, experiment, run_folder(experiment).uri, address)
    _say(f"job {job.id} {'submitted to' if job.is_new else 'is under way on'} {job.address}")
    try:
        return follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        where = f"{job.id} --address {job.address}"
        raise StageError(
            f"detached, and the job goes on; see it again: the same command, or ray job logs --follow {where}; "
            f"stop it: ray job stop {where}"
        ) from None


def check_folders(experiment: Experiment) -> None:
    """Refuse folders that would be lost with the working directory of a job, which is a copy on the head.

    Raises:
        InputError: one is given by a relative path.
    """
    store = experiment.score.execution.store
    for field, uri in (("runs", experiment.runs), ("score.execution.store", store)):
        if uri is not None and "://" not in uri and not Path(uri).is_absolute():
            raise InputError(
                f"{field}: {uri!r} is a relative path, and would be lost with the job's copy of the working directory; "
                f"name a folder that all nodes share or a URI: --{field} s3://BUCKET/{field.rpartition('.')[2]}"
            )


def _say(line: str) -> None:
    print(f"xgray: {line}", file=sys.stderr, flush=True)
