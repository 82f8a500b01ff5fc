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
"""Of the working directory, beside what its .gitignore names and Ray leaves out (.git, .venv, __pycache__)."""
AGENT_SECONDS = 90.0
"""A cluster that has just started takes no job yet."""
RACES = 5
"""Tries at a number of its own, where others submit the same run at the same moment."""
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
    for _ in range(RACES):
        earlier = _tries(client, prefix)
        for number, one in earlier.items():
            if not one.status.is_terminal():
                if (one.metadata or {}).get("configuration") != configuration:
                    raise InputError(
                        f"{run} is being made by the job {prefix}{number} with another configuration; wait for its "
                        f"end, take another --name, or ray job stop {prefix}{number} --address {client.get_address()}"
                    )
                return Job(client, f"{prefix}{number}", is_new=False)
        # Not their count: `ray job delete` leaves gaps.
        job = f"{prefix}{max(earlier, default=0) + 1}"
        command = ["python", "-m", "xgray.cli.main", "run", file.resolve().relative_to(here).as_posix(), *options]
        metadata = {"run": run, "configuration": configuration}
        if _submitted(client, job, shlex.join([*command, "--address", "auto"]), here, metadata):
            return Job(client, job, is_new=True)
    raise StageError(f"{client.get_address()}: {job} is said to be there already, and is in no list; submit again")


def _submitted(client: JobSubmissionClient, job: str, command: str, here: Path, metadata: dict[str, str]) -> bool:
    """Whether the job was submitted; otherwise its id was given to another one meanwhile, which may have ended."""
    try:
        for attempt in stamina.retry_context(on=_no_agent_yet, attempts=None, timeout=AGENT_SECONDS, wait_max=5.0):
            with attempt:
                client.submit_job(
                    entrypoint=command,
                    submission_id=job,
                    runtime_env={"working_dir": str(here), "excludes": list(EXCLUDES)},
                    metadata=metadata,
                )
    except ValueError as error:  # the directory is too large
        raise InputError(f"{here}: {str(error).splitlines()[0]}") from None
    except (RuntimeError, requests.RequestException) as error:
        if f"{job} already exists" in str(error):
            return False
        raise StageError(f"{client.get_address()} took no job: {str(error).strip().splitlines()[-1]}") from None
    return True


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
            show(_rest(job, shown))
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


def _rest(job: Job, shown: int) -> str:
    """The log after its first characters: what came after a connection that broke near the end."""
    try:
        for attempt in stamina.retry_context(on=(RuntimeError, requests.RequestException), attempts=4, wait_max=5.0):
            with attempt:
                rest = job.client.get_job_logs(job.id)[shown:]
    except (RuntimeError, requests.RequestException):
        return f"[the log's end cannot be read now; see it by: ray job logs {job.id} --address {job.address}]\n"
    return rest


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


def _tries(client: JobSubmissionClient, prefix: str) -> dict[int, JobDetails]:
    """The jobs that were submitted for one run, by the number of the try, as far as the cluster knows."""
    try:
        jobs = client.list_jobs()
    except (RuntimeError, requests.RequestException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StageError(f"{client.get_address()} does not tell its jobs: {reason}; submit again") from None
    number = re.compile(re.escape(prefix) + r"(\d+)")
    found = ((number.fullmatch(one.submission_id or ""), one) for one in jobs)
    return {int(match[1]): one for match, one in found if match}


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
