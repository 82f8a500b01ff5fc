"""An experiment as a Ray job: submitted once, its log followed until it ends, gone on with by submitting it again.

The job is ``xgray run`` on the cluster's head, in a copy of the working directory. Its id is made of the run's folder
and the number of the try: whoever submits a run that is under way is shown its log, and no second driver starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
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
from xgray.runs import fingerprint

EXCLUDES = ("/runs", "/build", ".env", ".*_cache", "*.egg-info")
"""Of the working directory, beside what its .gitignore names and Ray leaves out (.git, .venv, __pycache__)."""
AGENT_SECONDS = 90.0
"""A cluster that has just started takes no job yet."""
LOST_SECONDS = 300.0
"""Without an answer, until the cluster counts as lost."""
QUIET_SECONDS = 60.0
"""Without a line, until the connection is made anew: one that broke while a laptop slept says nothing of it."""


@dataclass(frozen=True)
class Job:
    """A job on a cluster."""

    client: JobSubmissionClient
    id: str
    is_new: bool
    """Whether it was submitted now, and not under way before."""

    @property
    def address(self) -> str:
        return self.client.get_address()


def submit_job(file: Path, options: Sequence[str], experiment: Experiment, run: str, address: str | None) -> Job:
    """Submit the experiment, or find the job that is at it.

    Args:
        file: the experiment file, below the working directory, which the job gets a copy of.
        options: what changes the file's fields, as on the command line.
        experiment: both together.
        run: the run's folder or URI.
        address: of the cluster's dashboard, ``http://HEAD:8265``; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS.

    Raises:
        InputError: the file lies elsewhere, no cluster answers, it refuses the token or the directory, or the run is
            being made with another configuration.
        StageError: the cluster takes no jobs.
    """
    here = Path.cwd()
    if not file.resolve().is_relative_to(here):
        raise InputError(f"{file}: the job gets a copy of {here} and nothing else; call from a folder above the file")
    prefix = f"{experiment.name}-{hashlib.sha256(run.encode()).hexdigest()[:8]}-"
    configuration = fingerprint(experiment.model_dump(mode="json"))
    client = _client(address)
    earlier = _tries(client, prefix)
    for one in earlier:
        if not one.status.is_terminal():
            if (one.metadata or {}).get("configuration") != configuration:
                raise InputError(
                    f"{run} is being made by the job {one.submission_id} with another configuration; wait for its end, "
                    f"take another --name, or ray job stop {one.submission_id} --address {client.get_address()}"
                )
            return Job(client, str(one.submission_id), is_new=False)
    job = f"{prefix}{len(earlier) + 1}"
    try:
        command = ["python", "-m", "xgray.cli", "run", file.resolve().relative_to(here).as_posix(), *options]
        for attempt in stamina.retry_context(on=_no_agent_yet, attempts=None, timeout=AGENT_SECONDS, wait_max=5.0):
            with attempt:
                client.submit_job(
                    entrypoint=shlex.join([*command, "--address", "auto"]),
                    submission_id=job,
                    runtime_env={"working_dir": str(here), "excludes": list(EXCLUDES)},
                    metadata={"run": run, "configuration": configuration},
                )
    except ValueError as error:  # the directory is too large
        raise InputError(f"{here}: {str(error).splitlines()[0]}") from None
    except (RuntimeError, requests.RequestException) as error:
        if f"{job} already exists" in str(error):  # somebody was quicker
            return Job(client, job, is_new=False)
        raise StageError(f"{client.get_address()} took no job: {str(error).strip().splitlines()[-1]}") from None
    return Job(client, job, is_new=True)


def follow(job: Job, show: Callable[[str], None]) -> int:
    """Show the job's log until it ends; its exit code.

    Raises:
        StageError: the job was stopped or died, or the cluster answers no more.
    """
    shown = 0

    async def tail() -> None:
        nonlocal shown
        skip = shown
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(QUIET_SECONDS) as quiet:
            async for text in job.client.tail_job_logs(job.id):
                quiet.reschedule(loop.time() + QUIET_SECONDS)
                show(text[skip:])
                shown += len(text[skip:])
                skip = max(0, skip - len(text))

    while True:
        # A connection that breaks is made anew, unless the job has ended.
        with contextlib.suppress(RuntimeError, TimeoutError, aiohttp.ClientError):
            asyncio.run(tail())
        details = _details(job)
        if details.status.is_terminal():
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
            f"{job.address} answers no more; submit again once it does, the job may have gone on"
        ) from None
    except RuntimeError as error:
        raise StageError(f"{job.address} knows the job {job.id} no more; submit again: {error}") from None
    return details


def _exit_code(job: Job, details: JobDetails) -> int:
    if details.status == JobStatus.STOPPED:
        raise StageError(f"the job {job.id} was stopped; what is done stays, and submitting again goes on from there")
    code = details.driver_exit_code
    if code not in (0, 1, 2):
        reason = f"exit code {code}" if code is not None else (details.message or "no reason given").splitlines()[0]
        raise StageError(
            f"the job {job.id} died ({reason}); what is done stays, and submitting again goes on from there"
        )
    return code


def _tries(client: JobSubmissionClient, prefix: str) -> list[JobDetails]:
    """The jobs that were submitted for one run, as far as the cluster knows."""
    try:
        return [one for one in client.list_jobs() if (one.submission_id or "").startswith(prefix)]
    except (RuntimeError, requests.RequestException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StageError(f"{client.get_address()} does not tell its jobs: {reason}; submit again") from None


def _no_agent_yet(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "No available agent" in str(error)


def _client(address: str | None) -> JobSubmissionClient:
    for name in ("ray", dashboard_sdk.__name__, sdk.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    if address is not None:
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would let RAY_ADDRESS go before an argument
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address: {str(error).splitlines()[0].split('. ')[0]}; {TOKEN_HINT}") from None
    except (ConnectionError, ValueError, RuntimeError, requests.RequestException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--address: {reason}; name the cluster's dashboard: --address http://HEAD:8265") from None
