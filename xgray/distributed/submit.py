"""Submit an experiment as a Ray job, and follow its log until it ends. Submitting it again resumes the run.

The job is ``xgray run`` on the cluster's head, in a copy of the working directory. Its id is derived from the run's
folder and the number of the submission. Submitting a run while its job is active shows that job's log and starts no
second driver.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import ray
import requests
import stamina
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from xgray.config import Experiment
from xgray.distributed.cluster import TOKEN_HINT
from xgray.errors import InputError, StageError
from xgray.storage.fingerprint import fingerprint

EXCLUDES = ("/runs", "/build", ".env", ".*_cache", "*.egg-info")
"""Not copied from the working directory, in addition to what its .gitignore names and what Ray leaves out (.git, .venv,
__pycache__)."""
NEVER_COPIED = ("runs", "build", ".git", ".venv", "__pycache__")
NUM_LARGEST = 5
AGENT_SECONDS = 90.0
"""How long to wait for a cluster that has just started and takes no jobs yet."""
MAX_RACES = 5
"""Attempts to get a free number while others submit the same run at the same moment."""
LOST_SECONDS = 300.0
"""How long the cluster may give no answer before it counts as lost."""
QUIET_SECONDS = 60.0
"""How long the log may show no line before the connection is opened again: a connection that broke while a laptop was
asleep reports no error."""

RESUBMIT = "Results so far are kept. Submit again to go on."


@dataclass(frozen=True)
class Job:
    """A job on a cluster."""

    client: JobSubmissionClient
    id: str
    is_new: bool
    """Whether this call submitted it; otherwise it was active before."""

    @property
    def address(self) -> str:
        return self.client.get_address()


def submit_job(file: Path, options: Sequence[str], experiment: Experiment, run: str, address: str | None) -> Job:
    """Submit the experiment, or find the active job that runs it.

    Args:
        file: the experiment file, inside the working directory, of which the job gets a copy.
        options: the command-line options that change fields of the file.
        experiment: the experiment that results from both.
        run: the run's folder or URI.
        address: of the cluster's dashboard, ``http://HEAD:8265``; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        InputError: the file is outside the working directory, no cluster answers, the cluster refuses the token or the
            directory, or the run's active job has another configuration.
        StageError: the cluster takes no jobs.
    """
    here = Path.cwd()
    if not file.resolve().is_relative_to(here):
        raise InputError(
            f"{file}: the job gets a copy of {here} and nothing else. Run the command in a folder above the file."
        )
    prefix = f"{experiment.name}-{hashlib.sha256(run.encode()).hexdigest()[:8]}-"
    configuration = fingerprint(experiment.model_dump(mode="json"))
    client = _client(address)
    for _ in range(MAX_RACES):
        jobs = _jobs_of_run(client, prefix)
        for number, details in jobs.items():
            if not details.status.is_terminal():
                if (details.metadata or {}).get("configuration") != configuration:
                    raise InputError(
                        f"{run}: the job {prefix}{number} runs it with another configuration. Wait for its end, choose "
                        f"another --name, or stop it: ray job stop {prefix}{number} --address {client.get_address()}"
                    )
                return Job(client, f"{prefix}{number}", is_new=False)
        # Not the count of jobs, because `ray job delete` leaves gaps.
        job = f"{prefix}{max(jobs, default=0) + 1}"
        command = ["python", "-m", "xgray.cli.main", "run", file.resolve().relative_to(here).as_posix(), *options]
        metadata = {"run": run, "configuration": configuration}
        if _submit(client, job, shlex.join([*command, "--address", "auto"]), here, metadata):
            return Job(client, job, is_new=True)
    raise StageError(f"{client.get_address()}: the cluster says that {job} exists, but does not list it. Submit again.")


def _submit(client: JobSubmissionClient, job: str, command: str, here: Path, metadata: dict[str, str]) -> bool:
    """Submit the job, and return whether it was taken; if not, another job got the id in the meantime."""
    try:
        for attempt in stamina.retry_context(on=_has_no_agent_yet, attempts=None, timeout=AGENT_SECONDS, wait_max=5.0):
            with attempt:
                client.submit_job(
                    entrypoint=command,
                    submission_id=job,
                    runtime_env={"working_dir": str(here), "excludes": list(EXCLUDES)},
                    metadata=metadata,
                )
    except ValueError as error:
        raise _too_large(here, str(error).partition(". ")[0]) from None
    except (RuntimeError, requests.RequestException) as error:
        if f"{job} already exists" in str(error):
            return False
        if "status code 413" in str(error):
            raise _too_large(here, "it is larger than the cluster's dashboard takes, which is 100 MiB") from None
        raise StageError(
            f"{client.get_address()} did not take the job: {str(error).strip().splitlines()[-1]}"
        ) from None
    return True


def _too_large(folder: Path, reason: str) -> InputError:
    return InputError(
        f"{folder}: the job gets a copy of this folder, and the cluster does not take it: {reason}. The largest files: "
        f"{', '.join(largest_files(folder))}. Name what the job does not need in .gitignore or .rayignore, or lay it "
        "where the cluster reads it, such as s3://"
    )


def largest_files(folder: Path) -> list[str]:
    """Return the five largest files below a folder with their sizes, without those that are never copied."""
    sizes: dict[str, int] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in NEVER_COPIED]
        for name in files:
            path = Path(parent, name)
            with contextlib.suppress(OSError):  # a link without a target
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:NUM_LARGEST]
    return [f"{name} ({sizes[name] / 2**20:,.0f} MiB)" for name in largest]


def follow(job: Job, show: Callable[[str], None]) -> int:
    """Show the job's log until it ends, and return its exit code.

    Raises:
        StageError: the job was stopped or died, or the cluster does not answer any more.
    """
    num_shown = 0

    async def tail() -> None:
        nonlocal num_shown
        skip = num_shown  # a new connection sends the log from its beginning
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(QUIET_SECONDS) as quiet:
            async for text in job.client.tail_job_logs(job.id):
                quiet.reschedule(loop.time() + QUIET_SECONDS)
                show(text[skip:])
                num_shown += len(text[skip:])
                skip = max(0, skip - len(text))

    while True:
        # A broken connection is opened again, unless the job has ended.
        with contextlib.suppress(RuntimeError, TimeoutError, aiohttp.ClientError):
            asyncio.run(tail())
        details = _details(job)
        if details.status.is_terminal():
            show(_rest_of_log(job, num_shown))
            return _exit_code(job, details)
        time.sleep(1.0)


def _details(job: Job) -> JobDetails:
    try:
        for attempt in stamina.retry_context(
            on=requests.RequestException, attempts=None, timeout=LOST_SECONDS, wait_max=10.0
        ):
            with attempt:
                details = job.client.get_job_info(job.id)
    except requests.RequestException:
        raise StageError(
            f"{job.address} does not answer any more. The job may go on; submit again once the cluster answers."
        ) from None
    except RuntimeError as error:
        raise StageError(f"{job.address} does not know the job {job.id} any more: {error}. Submit again.") from None
    return details


def _rest_of_log(job: Job, num_shown: int) -> str:
    """Return the log after its first ``num_shown`` characters, for a connection that broke near the end."""
    try:
        for attempt in stamina.retry_context(on=(RuntimeError, requests.RequestException), attempts=4, wait_max=5.0):
            with attempt:
                rest = job.client.get_job_logs(job.id)[num_shown:]
    except (RuntimeError, requests.RequestException):
        return f"[the end of the log cannot be read now; see it with: ray job logs {job.id} --address {job.address}]\n"
    return rest


def _exit_code(job: Job, details: JobDetails) -> int:
    if details.status == JobStatus.STOPPED:
        raise StageError(f"the job {job.id} was stopped. {RESUBMIT}")
    code = details.driver_exit_code
    if code not in (0, 1, 2):
        reason = f"exit code {code}" if code is not None else (details.message or "no reason given").splitlines()[0]
        raise StageError(f"the job {job.id} died ({reason}). {RESUBMIT}")
    return code


def _jobs_of_run(client: JobSubmissionClient, prefix: str) -> dict[int, JobDetails]:
    """Return the jobs of one run that the cluster lists, by the number of the submission."""
    try:
        jobs = client.list_jobs()
    except (RuntimeError, requests.RequestException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StageError(f"{client.get_address()} does not list its jobs: {reason}. Submit again.") from None
    number = re.compile(re.escape(prefix) + r"(\d+)")
    matches = ((number.fullmatch(details.submission_id or ""), details) for details in jobs)
    return {int(match[1]): details for match, details in matches if match}


def _has_no_agent_yet(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "No available agent" in str(error)


def _client(address: str | None) -> JobSubmissionClient:
    for name in ("ray", dashboard_sdk.__name__, sdk.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # otherwise Ray would prefer RAY_ADDRESS to an argument
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address: {str(error).splitlines()[0].split('. ')[0]}. {TOKEN_HINT}") from None
    except (ConnectionError, ValueError, RuntimeError, requests.RequestException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--address: {reason}. Name the cluster's dashboard: --address http://HEAD:8265") from None
