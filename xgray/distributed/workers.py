"""Run units of work on workers that each hold one copy of a model, on a GPU or on cores.

A worker commits what it makes of a unit as files, so that its death costs at most one unit.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray

from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.devices import check_gpus
from xgray.distributed.failures import RESUME, Failure, worker_died
from xgray.distributed.job_environment import enter_directory, with_absolute_paths
from xgray.distributed.keys import take_keys
from xgray.distributed.placement import describe_resources, place_workers
from xgray.distributed.waiting import log_waiting
from xgray.errors import StageError, XgrayError
from xgray.storage.folder import Folder

MAX_DEATHS = 3
"""Deaths with one unit, or of starting actors between two finished units, that a stage survives."""
NO_UNIT = -1
"""The position of the unit of an actor that is starting."""
DIED = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""An actor's process or its node died or cannot be reached; or Ray ended the process for want of memory, which other
processes may have taken."""

Unit = TypeVar("Unit", contravariant=True)
Made = TypeVar("Made", covariant=True)


class Worker(Protocol[Unit, Made]):
    """One copy of a model. It is constructed with the first unit, so that its errors count as the unit's."""

    def work(self, unit: Unit) -> Made:
        """Make one unit and commit it; the return value is small."""
        ...


@dataclass(frozen=True)
class Work:
    """A unit of work that becomes one file."""

    file: str
    size: int
    """What the unit counts for in the progress."""
    unit: Any


@dataclass(frozen=True)
class ComputedFiles:
    """Counts of :func:`compute_missing`, and where it computed."""

    total: int
    """Sizes of all units together."""
    reused: int
    """Sizes of the units whose files existed before."""
    device: str


def compute_missing(
    worker: type[Worker[Any, str]],
    arguments: Sequence[Any],
    units: Sequence[Work],
    folder: Folder,
    stage: str,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ComputedFiles:
    """Have workers compute the files that ``folder`` lacks, each by ``worker(*arguments).work(unit)``. Ray must be up.

    Args:
        worker: commits the unit's file, and returns the device.
        on_progress: called with the sizes of the units that are done, and of all.

    Raises:
        XgrayError: as :func:`run_on_workers`.
    """
    existing = set(folder.names())
    missing = [work for work in units if work.file not in existing]
    total = sum(work.size for work in units)
    done = reused = total - sum(work.size for work in missing)
    on_progress(done, total)
    devices = set()
    results = _run_indexed(worker, arguments, [work.unit for work in missing], stage, num_workers)
    with contextlib.closing(results):
        for index, device in results:
            done += missing[index].size
            devices.add(device)
            on_progress(done, total)
    return ComputedFiles(total, reused, ", ".join(sorted(devices)))


def run_on_workers(
    worker: type[Worker[Unit, Made]],
    arguments: Sequence[Any],
    units: Sequence[Unit],
    stage: str,
    num_workers: int | None = None,
) -> Iterator[Made]:
    """Yield what ``worker(*arguments).work(unit)`` returns for each unit, as units finish. Ray must be up.

    Args:
        worker: the workers' class, which must be defined at the top level of its module.
        stage: the stage's name, for messages.
        num_workers: by default one for each GPU, or for each machine of a cluster without GPUs.

    Raises:
        InputError: the cluster can never hold that many workers.
        XgrayError: a worker raised it.
        StageError: a worker failed otherwise, or workers died repeatedly.
    """
    results = _run_indexed(worker, arguments, units, stage, num_workers)
    with contextlib.closing(results):
        for _, made in results:
            yield made


def _run_indexed(
    worker: type[Worker[Unit, Made]],
    arguments: Sequence[Any],
    units: Sequence[Unit],
    stage: str,
    num_workers: int | None,
) -> Generator[tuple[int, Made], None, None]:
    """As :func:`run_on_workers`, with the index of each unit."""
    if not units:
        return
    number, options = place_workers(cluster_capacity(), stage, num_workers)
    make = ray.remote(WorkerActor).options(**options)
    sent = [with_absolute_paths(argument) for argument in arguments]
    pool = WorkerPool(lambda: make.remote(worker, sent, os.getcwd()), min(number, len(units)), stage)
    resources = describe_resources(options["num_cpus"], options.get("num_gpus", 0))
    try:
        with log_waiting(lambda: None if pool.is_placed else f"{stage}: waiting for room for a worker of {resources}"):
            yield from pool.run(units)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, XgrayError):
            raise error.cause from None
        raise Failure.of(error.cause).error() from error
    except ray.exceptions.RayError as error:
        raise worker_died(error) from error
    finally:
        pool.close()


class WorkerPool:
    """Actors, and the unit that each is working on.

    Ray could restart an actor and repeat its task by itself. But the task would then wait for room for that one actor,
    for ever if a node has gone for good, while other actors are idle. Here a unit goes to the next free actor.
    """

    def __init__(self, make: Callable[[], Any], size: int, stage: str) -> None:
        self._make = make
        self._stage = stage
        self._alive: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Actors, by the Ray reference that is ready once the actor has found room."""
        self._working: dict[Any, tuple[Any, int]] = {}
        """Actors and the indices of their units, by the Ray reference that is ready once the unit is made."""
        for _ in range(size):
            self._start()

    @property
    def is_placed(self) -> bool:
        """Whether at least one of the actors has found room."""
        return len(self._alive) > len(self._starting)

    def _start(self) -> None:
        actor = self._make()
        self._alive.append(actor)
        self._starting[actor.ready.remote()] = actor

    def run(self, units: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the index of each unit and what was made of it, as units finish.

        Raises:
            StageError: actors died too often with one unit, or before they had one.
        """
        pending = list(range(len(units)))
        num_deaths = Counter[int]()
        idle: list[Any] = []
        while pending or self._working:
            while pending and idle:
                actor, index = idle.pop(), pending.pop(0)
                self._working[actor.work.remote(units[index])] = actor, index
            (ref,), _ = ray.wait([*self._working, *self._starting])
            actor, index = self._working.pop(ref, (None, NO_UNIT))
            actor = self._starting.pop(ref) if actor is None else actor
            try:
                made = ray.get(ref)
            except ray.exceptions.RayTaskError:  # may also be an instance of DIED, if the worker raised such an error
                raise
            except DIED as error:
                self._drop(actor)
                num_deaths[index] += 1
                if num_deaths[index] > MAX_DEATHS:
                    raise self._died_too_often(error) from error
                if index != NO_UNIT:
                    pending.insert(0, index)
                self._start()
                continue
            idle.append(actor)
            if index != NO_UNIT:
                num_deaths[NO_UNIT] = 0  # actors do start: nodes that come and go are not their fault
                yield index, made

    def _died_too_often(self, error: Exception) -> StageError:
        lines = str(error).strip().splitlines()
        # The first line names the cause if memory was short, the last line otherwise.
        reason = lines[0 if isinstance(error, ray.exceptions.OutOfMemoryError) else -1]
        return StageError(f"{self._stage}: a worker died: {reason}. {RESUME}")

    def _drop(self, actor: Any) -> None:
        self._alive.remove(actor)
        ray.kill(actor)

    def close(self) -> None:
        """End all actors."""
        for actor in list(self._alive):
            self._drop(actor)


class WorkerActor:
    """One worker in its process."""

    def __init__(self, worker: type[Worker[Any, Any]], arguments: Sequence[Any], directory: str) -> None:
        enter_directory(directory)
        self._class = worker
        self._arguments = arguments
        self._worker: Worker[Any, Any] | None = None

    def ready(self) -> None:
        """Return once there is room for this actor."""

    def work(self, unit: Any) -> Any:
        if self._worker is None:
            take_keys()  # of the hub, for weights that come from there
            check_gpus()
            self._worker = self._class(*self._arguments)
        return self._worker.work(unit)
