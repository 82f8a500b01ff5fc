"""What nodes have room for, and how engines and scorers share their GPUs: arithmetic alone, no cluster is asked.

Placement goes by it, and so does an estimate.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from xgray.config import LOADS_CLASSIFIER, Generate, Score

Shape = tuple[int, int]
"""Cores and GPUs of a node."""
Nodes = Counter[Shape]
"""How many nodes there are of each shape."""


@dataclass(frozen=True)
class ClusterCapacity:
    """What a cluster has, had when this driver began, and may get."""

    alive: Nodes
    at_start: Nodes
    autoscaler_limit: Nodes
    """What an autoscaler may grow it to, where it says so."""

    @property
    def expected(self) -> Nodes:
        """The nodes that are there, and those that were and are expected back; a replaced one counts once."""
        return self.alive | self.at_start

    @property
    def maximum(self) -> Nodes:
        """The most that there can ever be: what finds no room in it is asked for by mistake."""
        return self.expected | self.autoscaler_limit

    @property
    def has_gpu(self) -> bool:
        return num_fitting(self.maximum, 0, 1) > 0

    def nodes_for(self, cpus: int, gpus: int = 0) -> Nodes:
        """Those to reckon with: a cluster scaled down to nothing that has room counts as one node of each kind."""
        return (
            self.expected
            if num_fitting(self.expected, cpus, gpus)
            else self.expected | Counter(dict.fromkeys(self.autoscaler_limit, 1))
        )


def num_fitting(nodes: Nodes, cpus: int, gpus: int = 0) -> int:
    """How many workers of ``cpus`` cores and ``gpus`` GPUs find room at once, none of them divided."""
    return sum(count * _num_on_node(shape, cpus, gpus) for shape, count in nodes.items())


def _num_on_node(shape: Shape, cpus: int, gpus: int) -> int:
    return min(have // size for have, size in zip(shape, (cpus, gpus), strict=True) if size)


def most_cores(nodes: Nodes) -> int:
    """Of the node that has the most."""
    return max((cores for cores, _ in nodes), default=0)


def most_gpus(nodes: Nodes) -> int:
    """Of the node that has the most."""
    return max((gpus for _, gpus in nodes), default=0)


def cores_each(nodes: Nodes, number: int, gpus: int = 0) -> int:
    """The most cores that each of ``number`` workers with ``gpus`` GPUs can have at once; 0 where they find no room."""
    fitting = (cpus for cpus in range(most_cores(nodes), 0, -1) if num_fitting(nodes, cpus, gpus) >= number)
    return next(fitting, 0)


def engines_use_gpu(generate: Generate, any_gpu: bool) -> bool:
    asked = generate.execution.use_gpu
    return any_gpu and generate.execution.engine != "dummy" if asked is None else asked


@dataclass(frozen=True)
class Share:
    """Who holds the GPUs."""

    engines: int
    scorers: int
    """That have a GPU of their own."""


def share_gpus(nodes: Nodes, generate: Generate | None, score: Score | None) -> Share:
    """The GPUs of ``nodes`` among engines and scorers.

    A scorer that can use a GPU has one before the number of engines follows from what is left, but one engine, or as
    many as are asked for, come before the scorers. An engine lies on one node.

    Args:
        generate: None where no engine takes GPUs.
        score: None where nothing is scored.
    """
    scorers = score.execution.num_actors if score and score.scorer in LOADS_CLASSIFIER else 0
    scorers = min(scorers, num_fitting(nodes, 0, 1))
    if generate is None:
        return Share(0, scorers)
    cpus, size = generate.execution.cpus_per_actor or 1, generate.execution.tensor_parallel
    asked = generate.execution.num_actors
    least = min(asked or 1, num_fitting(nodes, cpus, size))
    while num_fitting(_without(nodes, scorers, cpus, size), cpus, size) < least:
        scorers -= 1
    return Share(asked or num_fitting(_without(nodes, scorers, cpus, size), cpus, size), scorers)


def _without(nodes: Nodes, number: int, cpus: int, size: int) -> Nodes:
    """The nodes less ``number`` GPUs, taken where they cost the fewest engines."""

    def cost(shape: Shape) -> int:
        return _num_on_node(shape, cpus, size) - _num_on_node((shape[0], shape[1] - 1), cpus, size)

    left = Counter(nodes)
    for _ in range(number):
        taken = min((shape for shape, count in left.items() if count and shape[1]), key=cost)
        left[taken] -= 1
        left[taken[0], taken[1] - 1] += 1
    return left


def spare_core(nodes: Nodes, cpus: int, gpus: int) -> bool:
    """Whether every node with cores keeps one, however many engines of ``cpus`` and ``gpus`` it takes."""
    return all(cores > _num_on_node((cores, own), cpus, gpus) * cpus for cores, own in nodes if cores)
