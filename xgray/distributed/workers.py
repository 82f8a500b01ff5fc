"""Units of work over Ray: workers that each hold one copy of a model, on a GPU or on cores, and take units in turn.

A worker commits what it makes of a unit as files of its own, so that a unit is the most that is lost when it dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import ray

from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.failures import Failure, death
from xgray.distributed.keys import take_keys
from xgray.distributed.placement import describe_resources, place_workers
from xgray.distributed.waiting import log_waiting
from xgray.errors import StageError, XgrayError
from xgray.storage.folder import Folder

MAX_DEATHS = 3
"""Deaths with one unit, or of starting actors between two finished units, that a stage survives by itself."""
NONE = -1
"""The position of no unit: the actor was starting."""
DIED = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""An actor's process or its node died or cannot be reached; or Ray ended it for want of memory, which other workers may
have taken."""

Unit = TypeVar("Unit", contravariant=True)
Made = TypeVar("Made", covariant=True)


class Worker(Protocol[Unit, Made]):
    """One copy of a model. It is made with the first unit, so that an error then is the unit's, not the actor's."""

    def work(self, unit: Unit) -> Made:
        """Make one unit and commit it; what is returned is small."""
        ...


@dataclass(frozen=True)
class Work:
    """A unit of work that becomes one file."""

    file: str
    size: int
    """What it counts for in the progress."""
    unit: Any


@dataclass(frozen=True)
class MadeFiles:
    total: int
    """Sizes of all units together."""
    reused: int
    """Of those whose files were there before."""
    device: str


def make_missing(
    worker: type[Worker[Any, str]],
    arguments: Sequence[Any],
    units: Sequence[Work],
    folder: Folder,
    stage: str,
    num_workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> MadeFiles:
    """Have workers make the files that ``folder`` lacks, each by ``worker(*arguments).work(unit)``. Ray must be up.

    Args:
        worker: commits the unit's file, and returns the device.
        on_progress: called with the sizes that are done, and those of all.

    Raises:
        XgrayError: as :func:`run_on_workers`.
    """
    present = set(folder.names())
    todo = [one for one in units if one.file not in present]
    total = sum(one.size for one in units)
    done = reused = total - sum(one.size for one in todo)
    on_progress(done, total)
    devices = set()
    for position, device in run_on_workers(
        _Positioned, (worker, arguments), list(enumerate(one.unit for one in todo)), stage, num_workers
    ):
        done += todo[position].size
        devices.add(device)
        on_progress(done, total)
    return MadeFiles(total, reused, ", ".join(sorted(devices)))


class _Positioned:
    """A worker whose answers say to which unit they belong."""

    def __init__(self, worker: type[Worker[Any, str]], arguments: Sequence[Any]) -> None:
        self._worker = worker(*arguments)

    def work(self, unit: tuple[int, Any]) -> tuple[int, str]:
        return unit[0], self._worker.work(unit[1])


def run_on_workers(
    worker: type[Worker[Unit, Made]],
    arguments: Sequence[Any],
    units: Sequence[Unit],
    stage: str,
    num_workers: int | None = None,
) -> Iterator[Made]:
    """What ``worker(*arguments).work(unit)`` returns for each unit, as they finish. Ray must be up.

    Args:
        worker: its class; a top-level one.
        stage: for messages.
        num_workers: by default one for each GPU, or for each machine of a cluster without.

    Raises:
        InputError: the cluster can never hold that many workers.
        XgrayError: a worker raised it.
        StageError: a worker failed otherwise, or workers died again and again.
    """
    if not units:
        return
    size, options = place_workers(cluster_capacity(), stage, num_workers)
    make = ray.remote(WorkerActor).options(**options)
    crew = WorkerPool(lambda: make.remote(worker, list(arguments)), min(size, len(units)), stage)
    kind = describe_resources(options["num_cpus"], options.get("num_gpus", 0))
    try:
        with log_waiting(lambda: None if crew.placed else f"{stage}: waiting for room for a worker of {kind}"):
            yield from crew.work_on(units)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, XgrayError):
            raise error.cause from None
        raise Failure.of(error.cause).error() from error
    except ray.exceptions.RayError as error:
        raise death(error) from error
    finally:
        crew.dismiss()


class WorkerPool:
    """Actors and what each is at.

    Ray could restart an actor and repeat its task by itself, but the task then waits for room for that one actor, for
    ever where a node has gone for good, while others are idle. Here it goes to whoever is free next.
    """

    def __init__(self, make: Callable[[], Any], size: int, stage: str) -> None:
        self._make = make
        self._stage = stage
        self._alive: list[Any] = []
        self._starting: dict[Any, Any] = {}
        """Actors by what tells that they have found room."""
        self._working: dict[Any, tuple[Any, int]] = {}
        """Actors and positions of their units, by what tells that they are done."""
        for _ in range(size):
            self._start()

    @property
    def placed(self) -> bool:
        """Whether any of them has found room."""
        return len(self._alive) > len(self._starting)

    def _start(self) -> None:
        actor = self._make()
        self._alive.append(actor)
        self._starting[actor.ready.remote()] = actor

    def work_on(self, units: Sequence[Any]) -> Iterator[Any]:
        todo = list(range(len(units)))
        deaths = Counter[int]()
        idle: list[Any] = []
        while todo or self._working:
            while todo and idle:
                actor, position = idle.pop(), todo.pop(0)
                self._working[actor.work.remote(units[position])] = actor, position
            (ref,), _ = ray.wait([*self._working, *self._starting])
            actor, position = self._working.pop(ref, (None, NONE))
            actor = self._starting.pop(ref) if actor is None else actor
            try:
                made = ray.get(ref)
            except ray.exceptions.RayTaskError:  # its class is also the one of what the worker raised
                raise
            except DIED as error:
                self._drop(actor)
                deaths[position] += 1
                if deaths[position] > MAX_DEATHS:
                    lines = str(error).strip().splitlines()  # the last says of what, if it was not memory
                    reason = lines[0 if isinstance(error, ray.exceptions.OutOfMemoryError) else -1]
                    raise StageError(
                        f"{self._stage}: a worker died: {reason}; run the same command to go on"
                    ) from error
                if position != NONE:
                    todo.insert(0, position)
                self._start()
                continue
            idle.append(actor)
            if position != NONE:
                deaths[NONE] = 0  # actors do start: nodes that come and go are no fault of theirs
                yield made

    def _drop(self, actor: Any) -> None:
        self._alive.remove(actor)
        ray.kill(actor)

    def dismiss(self) -> None:
        for actor in list(self._alive):
            self._drop(actor)


class WorkerActor:
    """One worker in its process."""

    def __init__(self, worker: type[Worker[Any, Any]], arguments: Sequence[Any]) -> None:
        self._make = worker
        self._arguments = arguments
        self._worker: Worker[Any, Any] | None = None

    def ready(self) -> None:
        """Answered when there is room for this actor."""

    def work(self, unit: Any) -> Any:
        if self._worker is None:
            take_keys()  # of the hub, where the weights come from there
            self._worker = self._make(*self._arguments)
        return self._worker.work(unit)
