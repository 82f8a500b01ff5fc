"""The command that hands a run to a cluster: ``xgray submit``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments, is_experiment_file
from xgray.errors import InputError, StageError

if TYPE_CHECKING:
    from xgray.config import Experiment


@with_fields()
def submit(*arguments: Arguments, address: str | None = None) -> int:
    """Run an experiment as a Ray job on a cluster, and show its log until it ends.

    Called again, the command shows the log of the running job, or resumes the run in a new job. An interrupt leaves the
    job running. The job gets a copy of the working directory. Keys are not sent: the cluster needs its own.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml. The options below change its fields.
    address
        The cluster's dashboard, http://HEAD:8265; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
    """
    from xgray.config.file import load_experiment, parse_overrides, split

    paths, options = split(arguments)
    if len(paths) != 1 or not is_experiment_file(paths[0]):
        raise InputError("name one experiment file: xgray submit EXPERIMENT.yaml --address http://HEAD:8265")
    file = Path(paths[0])
    experiment = load_experiment(file, parse_overrides(options))
    check_folders(experiment)
    from xgray.distributed.keys import KEYS
    from xgray.distributed.submit import follow, submit_job
    from xgray.experiment.plan import run_folder

    if keys := [name for name in KEYS if name in os.environ]:
        _log(f"{' '.join(keys)}: not sent. If the run needs them, set them in the environment of the head node")
    job = submit_job(file, options, experiment, run_folder(experiment).uri, address)
    _log(f"job {job.id} {'submitted to' if job.is_new else 'is running on'} {job.address}")
    try:
        return follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        target = f"{job.id} --address {job.address}"
        raise StageError(
            f"detached; the job goes on. Follow it with the same command, or with ray job logs --follow {target}. "
            f"Stop it with ray job stop {target}"
        ) from None


def check_folders(experiment: Experiment) -> None:
    """Check that an experiment's folders lie outside the job's working directory, which is a copy that is deleted.

    Raises:
        InputError: a folder is given by a relative path.
    """
    stores = [("score.execution.store", section.execution.store) for section in experiment.scores]
    for field, uri in (("runs", experiment.runs), *stores):
        if uri is not None and "://" not in uri and not Path(uri).is_absolute():
            raise InputError(
                f"{field}: {uri!r} is a relative path, and would be lost with the job's copy of the working directory; "
                f"name a folder that all nodes share or a URI: --{field} s3://BUCKET/{field.rpartition('.')[2]}"
            )


def _log(line: str) -> None:
    print(f"xgray: {line}", file=sys.stderr, flush=True)
