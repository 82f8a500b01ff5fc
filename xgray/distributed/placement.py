"""Decide on what the actors of each stage run: on GPUs or cores, and how many of them.

The capacity that the cluster has or may get decides (:class:`xgray.distributed.nodes.ClusterCapacity`), not the nodes
that are alive at the moment: a node that was alive when this driver joined, or that the autoscaler may start, is asked
for and waited for. Where a file asks for more workers than the cluster can ever hold, fewer do the same work.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from xgray.config import Generate, Score, TrainingWorkers
from xgray.distributed.cluster import thread_environment
from xgray.distributed.nodes import (
    ClusterCapacity,
    cores_each,
    engine_placement,
    most_cores,
    most_gpus,
    num_fitting,
    scorer_placement,
)
from xgray.errors import InputError

log = logging.getLogger(__name__)


def describe_resources(cpus: int, gpus: float = 0) -> str:
    """Return the resources in words: ``2 CPUs and 1 GPU``."""
    cores, devices = f"{cpus} CPU{'s' * (cpus != 1)}", f"{gpus:g} GPU{'s' * (gpus != 1)}"
    return f"{cores} and {devices}" if gpus else cores


class WorkerShare(NamedTuple):
    """What each worker of a training takes."""

    gpus: float
    """1 for a whole GPU, less for a part of one, 0 where it trains on cores."""
    cpus: int


WorkersT = TypeVar("WorkersT", bound=TrainingWorkers)


def fit_training(
    capacity: ClusterCapacity,
    execution: WorkersT,
    can_share: Callable[[int], bool],
    field: str = "train.execution.num_workers",
) -> WorkersT:
    """Return how a training is run on this cluster: as the file says, or by fewer workers, which is logged once.

    Args:
        capacity: of the cluster.
        execution: what the file says.
        can_share: whether this many workers can share the batches evenly, so that the steps stay the same.
        field: what the file calls their number.
    """
    wanted, gpus = execution.num_workers, int(_trains_on_gpus(capacity, execution))
    num_fit = num_fitting(capacity.maximum, execution.cpus_per_worker or 1, gpus)
    number = next((number for number in range(min(wanted, num_fit), 0, -1) if can_share(number)), wanted)
    if number < wanted:
        room = f"the cluster has room for {num_fit} of {describe_resources(execution.cpus_per_worker or 1, gpus)}"
        reason = room if num_fit < wanted else "more cannot share a batch evenly"
        _warn_of_fewer(field, wanted, number, f"{reason}; the optimizer steps stay the same")
    return execution.model_copy(update={"num_workers": number})


def _trains_on_gpus(capacity: ClusterCapacity, execution: TrainingWorkers) -> bool:
    return capacity.has_gpu if execution.use_gpu is None else execution.use_gpu


def place_training(
    capacity: ClusterCapacity, execution: TrainingWorkers, field: str = "train.execution.num_workers"
) -> WorkerShare:
    """Return what each worker of a training takes that runs alone: the most cores with which all fit at once.

    Args:
        capacity: of the cluster.
        execution: the number of workers, and what the user wants them to take.
        field: what the file calls their number, for the message.

    Raises:
        InputError: the cluster can never hold all workers at once.
    """
    gpu = _trains_on_gpus(capacity, execution)
    cpus_per_worker, num_workers = execution.cpus_per_worker, execution.num_workers
    for nodes in (capacity.alive, capacity.expected, capacity.maximum):
        if cpus_per_worker and num_fitting(nodes, cpus_per_worker, int(gpu)) >= num_workers:
            return WorkerShare(int(gpu), cpus_per_worker)
        if not cpus_per_worker and (cpus := cores_each(nodes, num_workers, int(gpu))):
            return WorkerShare(int(gpu), cpus)
    workers = f"{num_workers} workers of {describe_resources(cpus_per_worker or 1, int(gpu))} at once"
    raise _no_room(field, workers, capacity)


def place_trainings(
    capacity: ClusterCapacity, executions: Sequence[TrainingWorkers], num_by_memory: int
) -> list[WorkerShare]:
    """Return what each worker of each training takes where the trainings run side by side.

    As many run at once as fit. Those that are left over for the last turn share the whole cluster among themselves. The
    shares do not depend on which trainings are finished: a training that resumes has the cores that it began with, and
    so the same rounding.

    Args:
        capacity: of the cluster.
        executions: those of all trainings, in the order in which they begin.
        num_by_memory: how many workers the memory of a GPU holds, or of a node where they take no GPU. A GPU is shared
            by trainings of a single worker alone.

    Raises:
        InputError: the cluster can never hold one of them.
    """
    number = len(executions)
    return [
        _share(capacity, execution, place_training(capacity, execution), (index, number), num_by_memory)
        for index, execution in enumerate(executions)
    ]


def _share(
    capacity: ClusterCapacity,
    execution: TrainingWorkers,
    alone: WorkerShare,
    position: tuple[int, int],
    num_by_memory: int,
) -> WorkerShare:
    """Return the share of one of several trainings like it; ``position`` is its index, and their number."""
    index, number = position
    gpu, num_workers = int(alone.gpus), execution.num_workers
    for nodes in (capacity.alive, capacity.expected, capacity.maximum):
        num_gpus = num_fitting(nodes, 0, 1)
        is_shared = gpu and num_workers == 1 and num_gpus
        parts = min(num_by_memory, math.ceil(number / num_gpus)) if is_shared else 1
        divided = Counter({(cores, gpus * parts): count for (cores, gpus), count in nodes.items()})
        fitting = num_fitting(divided, execution.cpus_per_worker or 1, gpu)
        if not gpu and not execution.cpus_per_worker:
            fitting = sum(min(cores, num_by_memory) * count for (cores, _), count in nodes.items())
        fitting //= num_workers
        if fitting:
            num_last = number % min(number, fitting)
            num_at_once = num_last if index >= number - num_last else min(number, fitting)
            cpus = execution.cpus_per_worker or cores_each(divided, num_at_once * num_workers, gpu)
            return WorkerShare(gpu * _part(parts), cpus)
    return alone


def _part(number: int) -> float:
    """Return the share of a GPU of which ``number`` fit into it: Ray counts in ten-thousandths."""
    return math.floor(10_000 / number) / 10_000


def _no_room(field: str, workers: str, capacity: ClusterCapacity) -> InputError:
    nodes = capacity.maximum
    largest = describe_resources(most_cores(nodes), most_gpus(nodes))
    return InputError(
        f"{field}: the cluster has no room for {workers}: no node of it has more than {largest}. Ask for less, "
        "or add nodes, and run the same command again."
    )


def place_engines(capacity: ClusterCapacity, generate: Generate, score: Score | None) -> tuple[int, dict[str, Any]]:
    """Return the number of engines, and Ray's options for them: on GPUs if there are any, else one per node.

    Raises:
        InputError: the cluster can never hold one of them.
    """
    engine = engine_placement(capacity, generate, score)
    resources = describe_resources(engine.cpus, engine.gpus)
    if not num_fitting(engine.nodes, engine.cpus, engine.gpus):
        raise _no_room("generate.execution", f"an engine of {resources}", capacity)
    options: dict[str, Any] = {"num_cpus": engine.cpus}
    if engine.gpus:
        options["num_gpus"] = engine.gpus
    else:
        options["runtime_env"] = thread_environment(engine.threads)
    _warn_if_waiting(engine.number, num_fitting(capacity.alive, engine.cpus, engine.gpus), f"engines of {resources}")
    return engine.number, options


_warned: set[str] = set()
"""Warnings that were logged: the checks before a run and the stage itself would give the same one."""


def _warn_of_fewer(field: str, num_wanted: int, num_used: int, reason: str) -> None:
    """Log that fewer workers are used than the file asks for, once in a process."""
    text = f"{field}: {num_wanted} workers are asked for and {num_used} used: {reason}"
    if text not in _warned:
        _warned.add(text)
        log.warning("%s", text)


def _warn_if_waiting(num_wanted: int, num_placed: int, actors: str) -> None:
    if num_wanted > num_placed:
        log.warning("%d %s wanted, and there is room for %d: the others wait for nodes", num_wanted, actors, num_placed)


def place_scorers(
    capacity: ClusterCapacity, score: Score, generate: Generate | None, num_blocks: int
) -> tuple[int, dict[str, Any]]:
    """Return the number of scoring actors, and Ray's options for them; see ``scorer_placement`` for the arguments."""
    scorer = scorer_placement(capacity, score, generate, num_blocks)
    if scorer.gpus:
        if scorer.number < (score.execution.num_actors or 1):
            log.warning(
                "score.execution.num_actors: %d scorers wanted, and the engines leave GPUs for %d: no more are started",
                score.execution.num_actors,
                scorer.number,
            )
        return scorer.number, {"num_cpus": 0, "num_gpus": scorer.gpus}
    environment = thread_environment(scorer.threads)
    # Ray leaves all GPUs visible to actors that reserve none.
    environment["env_vars"]["CUDA_VISIBLE_DEVICES"] = ""
    return scorer.number, {"num_cpus": scorer.cpus, "runtime_env": environment}


def place_workers(capacity: ClusterCapacity, stage: str, num_workers: int | None = None) -> tuple[int, dict[str, Any]]:
    """Return the number of workers that each hold one copy of a model, and Ray's options for them.

    Args:
        num_workers: by default one for each GPU, or one for each machine of a cluster without GPUs. Where the cluster
            can never hold as many, fewer do the work, which is logged once.

    Raises:
        InputError: the cluster can never hold one.
    """
    gpus = int(capacity.has_gpu)
    num_fit = num_fitting(capacity.maximum, 1, gpus)
    if num_workers and 0 < num_fit < num_workers:
        room = f"the cluster has room for {num_fit} of {describe_resources(1, gpus)}"
        _warn_of_fewer(f"{stage}.execution.num_workers", num_workers, num_fit, room)
        num_workers = num_fit
    nodes = capacity.nodes_for(1, gpus)
    machines = Counter({shape: count for shape, count in nodes.items() if shape[0]})
    if gpus:
        number, cpus = num_workers or num_fitting(nodes, 1, 1), 1
    elif num_workers:
        number, cpus = num_workers, cores_each(nodes, num_workers) or cores_each(capacity.maximum, num_workers) or 1
    else:
        number, cpus = machines.total(), min((cores for cores, _ in machines), default=1)
    resources = describe_resources(cpus, gpus)
    if not 0 < number <= num_fitting(capacity.maximum, cpus, gpus):
        raise _no_room(stage, f"a worker of {resources}", capacity)
    _warn_if_waiting(number, num_fitting(capacity.alive, cpus, gpus), f"workers of {resources}")
    if gpus:
        return number, {"num_gpus": 1, "num_cpus": 1}
    return number, {"num_cpus": cpus, "runtime_env": thread_environment(cpus)}
