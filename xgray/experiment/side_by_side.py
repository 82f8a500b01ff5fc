"""Run several trainings at once, in threads of the driver: in their order, as many at a time as fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from xgray.errors import InputError, StageError, XgrayError


@dataclass(frozen=True)
class Job:
    """Something to run beside others, and what it takes while it runs."""

    label: str
    cpus: int
    gpus: float
    run: Callable[[Future[None]], None]
    """Called in a thread of its own with a future that is set when the job is to stop; it then raises
    ``KeyboardInterrupt``."""


TOLERANCE = 1e-3
"""Parts of a GPU add up to a whole one up to rounding."""


def run_side_by_side(jobs: Sequence[Job], cpus: int, gpus: int) -> dict[str, Exception]:
    """Run the jobs in their order, each as soon as it fits beside those that run, and return what failed, by label.

    A job that fails takes no other down. After a ``KeyboardInterrupt`` all that run are asked to stop, and none is
    begun; it is raised again when they have.

    Args:
        cpus: cores that there are for all jobs. A job that takes more than there are runs alone.
        gpus: GPUs that there are for them.
    """
    stop: Future[None] = Future()
    waiting, running, failed = list(jobs), dict[Future[None], Job](), dict[str, Exception]()
    threads: list[threading.Thread] = []
    try:
        while waiting or running:
            while waiting and _fits(waiting[0], list(running.values()), cpus, gpus):
                job, answer = waiting.pop(0), Future[None]()
                running[answer] = job
                # An interrupt may come at any moment, so the thread is known before it runs.
                threads.append(threading.Thread(target=_run, args=(job, stop, answer), name=job.label, daemon=True))
                threads[-1].start()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job, error = running.pop(future), future.exception()
                if isinstance(error, Exception):
                    failed[job.label] = error
                elif error is not None:
                    raise error
    except KeyboardInterrupt:
        stop.set_result(None)
        for thread in threads:
            if thread.is_alive():
                thread.join()
        raise
    return failed


def _fits(job: Job, running: Sequence[Job], cpus: int, gpus: int) -> bool:
    used_cpus, used_gpus = sum(other.cpus for other in running), sum(other.gpus for other in running)
    return not running or (used_cpus + job.cpus <= cpus and used_gpus + job.gpus <= gpus + TOLERANCE)


def _run(job: Job, stop: Future[None], answer: Future[None]) -> None:
    try:
        job.run(stop)
    except BaseException as error:
        answer.set_exception(error)
    else:
        answer.set_result(None)


def failure(failed: dict[str, Exception], number: int) -> Exception:
    """Return the error of a group of ``number`` jobs, of which these failed: it names each of them.

    It is an ``InputError`` where no failure would go away by itself.
    """
    reasons = [f"{label}: {str(error).removeprefix('train: ')}" for label, error in failed.items()]
    errors = list(failed.values())
    if len(errors) == 1 and not isinstance(errors[0], XgrayError):
        return errors[0]
    kind = InputError if all(isinstance(error, InputError) for error in errors) else StageError
    others = number - len(failed)
    ended = f"The {others} others have" if others > 1 else "The other has" if others else "None has"
    return kind("\n".join([*reasons, f"{ended} come to an end; the same command goes on from here"]))
