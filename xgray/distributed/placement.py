"""What a cluster has room for.

It is told by the nodes that are alive: which ones an autoscaler may add, Ray tells nobody. So a cluster that grows
keeps one node of each kind at least; engines that find no room yet wait for more.
"""

from __future__ import annotations

import logging
from typing import Any

import ray

from xgray.config import Generate, Score, TrainExecution
from xgray.distributed.cluster import thread_environment
from xgray.errors import InputError
from xgray.score.build import GPU_SCORERS

log = logging.getLogger(__name__)


def room(cpus: float, gpus: float = 0) -> int:
    """How many workers of ``cpus`` cores and ``gpus`` GPUs find room on the cluster at once, none of them divided."""
    wanted = [(name, size) for name, size in (("CPU", cpus), ("GPU", gpus)) if size]
    return sum(min(int(node.get(name, 0) // size) for name, size in wanted) for node in _nodes())


def most(resource: str) -> int:
    """How much of a resource the node has that has the most of it."""
    return int(max(node.get(resource, 0) for node in _nodes()))


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def place_training(execution: TrainExecution) -> tuple[bool, int]:
    """Whether each worker takes a GPU, and its cores: as many as let all workers be placed at once.

    Raises:
        InputError: this cluster can never place them.
    """
    gpu = room(0, 1) > 0 if execution.use_gpu is None else execution.use_gpu
    least = execution.cpus_per_worker or 1
    for cpus in range(execution.cpus_per_worker or most("CPU"), least - 1, -1):
        if room(cpus, int(gpu)) >= execution.num_workers:
            return gpu, cpus
    asked = f"{execution.num_workers} workers of {least} CPUs{' and a GPU' if gpu else ''}"
    raise InputError(f"train.execution.num_workers: the cluster has no room for {asked} at once")


def scorer_gpus(score: Score | None, generate: Generate | None) -> int:
    """A GPU for each scoring actor that uses one, where that leaves enough for the engines."""
    if score is None or score.scorer not in GPU_SCORERS:
        return 0
    wanted = score.execution.num_actors
    least = 0
    if generate and engines_use_gpu(generate):
        least = (generate.execution.num_actors or 1) * generate.execution.tensor_parallel
    return wanted if room(0, 1) - wanted >= least else 0


def engines_use_gpu(generate: Generate) -> bool:
    asked = generate.execution.use_gpu
    return room(0, 1) > 0 and generate.execution.engine != "dummy" if asked is None else asked


def place_scorers(score: Score, generate: Generate | None) -> dict[str, Any]:
    """Ray's options for scoring actors: each on a GPU of its own, or on cores that none of them reserves."""
    if scorer_gpus(score, generate):
        return {"num_cpus": 0, "num_gpus": 1}
    environment = thread_environment(1 if generate else most("CPU"))
    # Ray leaves the GPUs in sight of those that have none.
    environment["env_vars"]["CUDA_VISIBLE_DEVICES"] = ""
    return {"num_cpus": 0, "runtime_env": environment}


def place_engines(generate: Generate, score: Score | None) -> tuple[int, dict[str, Any]]:
    """How many engines, and Ray's options for them: on GPUs where there are any, else one on all cores of a node.

    Raises:
        InputError: the cluster can never hold one of them.
    """
    execution = generate.execution
    options: dict[str, Any]
    if engines_use_gpu(generate):
        options = {"num_cpus": execution.cpus_per_actor or 1, "num_gpus": execution.tensor_parallel}
        held = room(options["num_cpus"], options["num_gpus"])
        size = execution.num_actors or held - scorer_gpus(score, generate) // execution.tensor_parallel
    else:
        size = execution.num_actors or 1
        threads = execution.cpus_per_actor or max(1, most("CPU") * len(ray.nodes()) // size)
        threads = min(threads, most("CPU"))
        # The cores are reserved but for one where there are several: Ray Data's own tasks need somewhere to run.
        options = {"num_cpus": max(1, threads - 1), "runtime_env": thread_environment(threads)}
        held = room(options["num_cpus"])
    kind = f"{options['num_cpus']} CPUs" + (f" and {options['num_gpus']} GPUs" if "num_gpus" in options else "")
    if not held:
        raise InputError(
            f"generate.execution: an engine of {kind} is asked for, and no node of the cluster has more than "
            f"{most('CPU')} CPUs and {most('GPU')} GPUs"
        )
    if size > held:
        log.warning(
            "%d engines of %s are asked for, and there is room for %d: the others wait for it", size, kind, held
        )
    return size, options
