"""How many workers fit on a cluster's nodes, and how engines and scorers share the GPUs.

This is arithmetic alone: nothing here asks a cluster. Placement and the estimate both use it.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

from xgray.config import LOADS_MODEL, Generate, Score

Shape = tuple[int, int]
"""Cores and GPUs of a node."""
Nodes = Counter[Shape]
"""How many nodes there are of each shape."""
UNBOUNDED = sys.maxsize
"""The number of nodes of a shape of which an autoscaler may start any number."""


@dataclass(frozen=True)
class ClusterCapacity:
    """The nodes of a cluster: now, when this driver joined it, and at most."""

    alive: Nodes
    """Nodes that are alive now."""
    at_start: Nodes
    """Nodes that were alive when this driver joined the cluster."""
    autoscaler_limit: Nodes
    """The most nodes that an autoscaler may start; empty where it does not say."""

    @property
    def expected(self) -> Nodes:
        """Nodes that are alive, and those that were and are expected back. A replaced node counts once."""
        return self.alive | self.at_start

    @property
    def maximum(self) -> Nodes:
        """Upper bound of the cluster's capacity; what does not fit into it can never run."""
        return self.expected | self.autoscaler_limit

    @property
    def has_gpu(self) -> bool:
        """Whether the cluster has a GPU or may get one."""
        return num_fitting(self.maximum, 0, 1) > 0

    def nodes_for(self, cpus: int, gpus: int = 0) -> Nodes:
        """Return the nodes on which to place workers of ``cpus`` cores and ``gpus`` GPUs: all that there may be.

        Of a shape of which there may be any number, one node is added where no expected node has room.
        """
        bounded = Counter({shape: count for shape, count in self.autoscaler_limit.items() if count < UNBOUNDED})
        nodes = self.expected | bounded
        if num_fitting(nodes, cpus, gpus):
            return nodes
        return nodes | Counter(dict.fromkeys(self.autoscaler_limit, 1))


def num_fitting(nodes: Nodes, cpus: int, gpus: int = 0) -> int:
    """Return how many workers of ``cpus`` cores and ``gpus`` GPUs fit at once; a worker lies on one node."""
    return sum(count * _num_fitting_on(shape, cpus, gpus) for shape, count in nodes.items())


def _num_fitting_on(shape: Shape, cpus: int, gpus: int) -> int:
    return min(available // needed for available, needed in zip(shape, (cpus, gpus), strict=True) if needed)


def most_cores(nodes: Nodes) -> int:
    """Return the cores of the node that has the most."""
    return max((cores for cores, _ in nodes), default=0)


def most_gpus(nodes: Nodes) -> int:
    """Return the GPUs of the node that has the most."""
    return max((gpus for _, gpus in nodes), default=0)


def cores_each(nodes: Nodes, number: int, gpus: int = 0) -> int:
    """Return the most cores that ``number`` workers with ``gpus`` GPUs can each have at once; 0 if they do not fit."""
    fitting = (cpus for cpus in range(most_cores(nodes), 0, -1) if num_fitting(nodes, cpus, gpus) >= number)
    return next(fitting, 0)


def engines_use_gpu(generate: Generate, has_gpu: bool) -> bool:
    """Return whether engines run on GPUs: as the section says, by default where there are any."""
    use_gpu = generate.execution.use_gpu
    return has_gpu and generate.execution.engine != "dummy" if use_gpu is None else use_gpu


@dataclass(frozen=True)
class Share:
    """How many engines and how many scorers hold GPUs."""

    engines: int
    scorers: int


def share_gpus(nodes: Nodes, generate: Generate | None, score: Score | None) -> Share:
    """Share the GPUs of ``nodes`` among engines and scorers.

    Each scorer that can use a GPU gets one, and the engines get the rest. But one engine, or as many as
    ``generate.execution.num_actors`` asks for, come before the scorers. An engine lies on one node.

    Args:
        generate: None where no engine takes GPUs.
        score: None where nothing is scored.
    """
    scorers = score.execution.num_actors if score and score.scorer in LOADS_MODEL else 0
    scorers = min(scorers, num_fitting(nodes, 0, 1))
    if generate is None:
        return Share(0, scorers)
    cpus, gpus = generate.execution.cpus_per_actor or 1, generate.execution.tensor_parallel
    num_actors = generate.execution.num_actors
    least = min(num_actors or 1, num_fitting(nodes, cpus, gpus))
    while num_fitting(_without_gpus(nodes, scorers, cpus, gpus), cpus, gpus) < least:
        scorers -= 1
    return Share(num_actors or num_fitting(_without_gpus(nodes, scorers, cpus, gpus), cpus, gpus), scorers)


def _without_gpus(nodes: Nodes, number: int, cpus: int, gpus: int) -> Nodes:
    """Return the nodes less ``number`` GPUs, taken where this costs the fewest engines of ``cpus`` and ``gpus``."""

    def cost(shape: Shape) -> int:
        return _num_fitting_on(shape, cpus, gpus) - _num_fitting_on((shape[0], shape[1] - 1), cpus, gpus)

    remaining = Counter(nodes)
    for _ in range(number):
        cheapest = min((shape for shape, count in remaining.items() if count and shape[1]), key=cost)
        remaining[cheapest] -= 1
        remaining[cheapest[0], cheapest[1] - 1] += 1
    return remaining


def leaves_spare_core(nodes: Nodes, cpus: int, gpus: int) -> bool:
    """Return whether every node with cores keeps a free core when it is full of engines of ``cpus`` and ``gpus``."""
    return all(cores > _num_fitting_on((cores, node_gpus), cpus, gpus) * cpus for cores, node_gpus in nodes if cores)
