"""Who runs where: on GPUs or cores, and how many of them.

What the cluster has or may get decides (:class:`xgray.distributed.nodes.ClusterCapacity`), not what is alive at the moment: a node that was
there when this driver began, or that an autoscaler says it may add, is waited for. Ray 2.60's own autoscalers do not
say it (later ones and hosted ones do), so under these a run is offered what was there when it began.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from xgray.config import LOADS_CLASSIFIER, Generate, Score, TrainExecution
from xgray.distributed.cluster import thread_environment
from xgray.distributed.nodes import (
    ClusterCapacity,
    Nodes,
    cores_each,
    engines_use_gpu,
    most_cores,
    most_gpus,
    num_fitting,
    share_gpus,
    spare_core,
)
from xgray.errors import InputError
from xgray.score.build import SERVICES

log = logging.getLogger(__name__)


def describe_resources(cpus: int, gpus: int = 0) -> str:
    """``2 CPUs and 1 GPU``."""
    cores, devices = f"{cpus} CPU{'s' * (cpus != 1)}", f"{gpus} GPU{'s' * (gpus != 1)}"
    return f"{cores} and {devices}" if gpus else cores


def place_training(capacity: ClusterCapacity, execution: TrainExecution) -> tuple[bool, int]:
    """Whether each worker takes a GPU, and its cores: as many as let all workers be placed at once.

    Raises:
        InputError: this cluster can never place them.
    """
    gpu = capacity.has_gpu if execution.use_gpu is None else execution.use_gpu
    exactly, number = execution.cpus_per_worker, execution.num_workers
    for nodes in (capacity.alive, capacity.expected, capacity.maximum):
        if exactly and num_fitting(nodes, exactly, int(gpu)) >= number:
            return gpu, exactly
        if not exactly and (cpus := cores_each(nodes, number, int(gpu))):
            return gpu, cpus
    asked = f"{number} workers of {describe_resources(exactly or 1, int(gpu))}"
    raise InputError(
        f"train.execution.num_workers: the cluster has no room for {asked} at once: {_largest(capacity.maximum)}; ask for "
        "less, or add nodes and run the same command again"
    )


def _largest(nodes: Nodes) -> str:
    return f"no node of it has more than {describe_resources(most_cores(nodes), most_gpus(nodes))}"


def _engine(capacity: ClusterCapacity, generate: Generate) -> tuple[Nodes, int, int, int]:
    """The nodes that engines are placed on, and the cores, the GPUs and the threads of each engine."""
    execution = generate.execution
    if engines_use_gpu(generate, capacity.has_gpu):
        cpus, gpus = execution.cpus_per_actor or 1, execution.tensor_parallel
        return capacity.nodes_for(cpus, gpus), cpus, gpus, cpus
    nodes = capacity.nodes_for(1)
    threads = execution.cpus_per_actor or cores_each(nodes, execution.num_actors or 1) or 1
    threads = max(1, min(threads, most_cores(nodes)))
    # The cores are reserved but for one where there are several: Ray Data's own tasks need somewhere to run.
    return nodes, max(1, threads - 1), 0, threads


def place_engines(capacity: ClusterCapacity, generate: Generate, score: Score | None) -> tuple[int, dict[str, Any]]:
    """How many engines, and Ray's options for them: on GPUs where there are any, else one on all cores of a node.

    Raises:
        InputError: the cluster can never hold one of them.
    """
    nodes, cpus, gpus, threads = _engine(capacity, generate)
    if not num_fitting(nodes, cpus, gpus):
        raise InputError(
            f"generate.execution: an engine of {describe_resources(cpus, gpus)} is asked for, and {_largest(capacity.maximum)}; ask "
            "for less, or add nodes and run the same command again"
        )
    options: dict[str, Any] = {"num_cpus": cpus}
    if gpus:
        options["num_gpus"] = gpus
        size = share_gpus(nodes, generate, score).engines
    else:
        options["runtime_env"] = thread_environment(threads)
        size = generate.execution.num_actors or 1
    _warn(size, num_fitting(capacity.alive, cpus, gpus), f"engines of {describe_resources(cpus, gpus)}")
    return size, options


def _warn(asked: int, held: int, what: str) -> None:
    if asked > held:
        log.warning("%d %s are asked for, and there is room for %d: the others wait for it", asked, what, held)


def place_scorers(capacity: ClusterCapacity, score: Score, generate: Generate | None) -> tuple[int, dict[str, Any]]:
    """How many scoring actors, and Ray's options for them: each on a GPU of its own, or on cores.

    On one machine they reserve none of the cores, which the engine has. On several they reserve one each, so that they
    keep off a head without cores and an autoscaler hears of them; but not where engines could take a node's last core
    and leave them without.

    Args:
        generate: what is sampled meanwhile, if anything.
    """
    asked = score.execution.num_actors
    engine = _engine(capacity, generate) if generate else None
    if capacity.has_gpu and score.scorer in LOADS_CLASSIFIER:
        held_by_engines = generate if engine and engine[2] else None
        nodes = engine[0] if engine and engine[2] else capacity.nodes_for(0, 1)
        given = share_gpus(nodes, held_by_engines, score).scorers
        if given < asked:
            log.warning(
                "score.execution.num_actors: %d scorers are asked for, and the engines leave GPUs for %d: %s",
                asked,
                given,
                "there are no more of them" if given else "they go to the CPU, one thread each, and are slow",
            )
        if given:
            return given, {"num_cpus": 0, "num_gpus": 1}
    cpus, threads = 0, 1 if generate else most_cores(capacity.nodes_for(1))
    if capacity.maximum.total() > 1 and engine is None:
        threads = cores_each(capacity.nodes_for(1), asked) or 1
        cpus = 1 if score.scorer in SERVICES else max(1, threads - 1)
    elif capacity.maximum.total() > 1 and engine and spare_core(capacity.maximum, *engine[1:3]):
        cpus = 1
    environment = thread_environment(threads)
    # Ray leaves the GPUs in sight of those that have none.
    environment["env_vars"]["CUDA_VISIBLE_DEVICES"] = ""
    return asked, {"num_cpus": cpus, "runtime_env": environment}


def place_workers(capacity: ClusterCapacity, stage: str, num_workers: int | None = None) -> tuple[int, dict[str, Any]]:
    """How many workers with one copy of a model each, and Ray's options for them.

    Args:
        num_workers: by default one for each GPU, or for each machine of a cluster without.

    Raises:
        InputError: the cluster can never hold them at once.
    """
    gpus = int(capacity.has_gpu)
    nodes = capacity.nodes_for(1, gpus)
    machines = Counter({shape: count for shape, count in nodes.items() if shape[0]})
    if gpus:
        size, cpus = num_workers or num_fitting(nodes, 1, 1), 1
    elif num_workers:
        size, cpus = num_workers, cores_each(nodes, num_workers) or cores_each(capacity.maximum, num_workers) or 1
    else:
        size, cpus = machines.total(), min((cores for cores, _ in machines), default=1)
    if not 0 < size <= num_fitting(capacity.maximum, cpus, gpus):
        field = f"{stage}.execution.num_workers" if num_workers else stage
        raise InputError(
            f"{field}: the cluster has no room for {max(1, size)} workers of {describe_resources(cpus, gpus)} at once: "
            f"{_largest(capacity.maximum)}; ask for less, or add nodes and run the same command again"
        )
    _warn(size, num_fitting(capacity.alive, cpus, gpus), f"workers of {describe_resources(cpus, gpus)}")
    if gpus:
        return size, {"num_gpus": 1, "num_cpus": 1}
    return size, {"num_cpus": cpus, "runtime_env": thread_environment(cpus)}
