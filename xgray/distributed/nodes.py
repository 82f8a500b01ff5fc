"""How many workers fit on a cluster's nodes, and how engines and scorers share its GPUs and cores.

This is arithmetic alone: nothing here asks a cluster. Placement and the estimate both use it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass

from xgray.config import LOADS_MODEL, Generate, Score
from xgray.score.build import SERVICES

Shape = tuple[int, int]
"""Cores and GPUs of a node."""
Nodes = Counter[Shape]
"""How many nodes there are of each shape."""
FEW_CORES = 8
"""On nodes with more cores than these, scorers leave one to Ray's own processes."""
SCORER_THREADS = (4, 8)
"""The fewest and the most threads of one embedding scorer where there are cores for several. Each thread needs Python
for 2 % of its time, so that many more would wait for each other; and each scorer takes the memory of a process."""
USABLE_MEMORY = 0.92
"""The part of a GPU's memory that is shared out, as vLLM by default takes of a GPU of its own."""
SCORER_GIB = 3.0
"""What a scorer takes beside its weights: the CUDA context, and the activations of a batch."""
ENGINE_GIB = 4.0
"""What an engine must have beside its weights: the CUDA context, a step's activations, and a cache of some use."""
LEAST_PROMPTS = 64
"""In a block whose size the file does not say."""
MAX_NUM_SEQS = 1024
"""The most completions that vLLM samples in one step on a large GPU, where the file does not say; 256 on others."""
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
    ``generate.execution.num_actors`` asks for, come before the scorers. An engine lies on one node. By default there is
    one scorer, and one more on each GPU that no engine can use.

    Args:
        generate: None where no engine takes GPUs.
        score: None where nothing is scored.
    """
    num_gpus = num_fitting(nodes, 0, 1)
    wanted = score.execution.num_actors if score else None
    scorers = min(wanted or (1 if generate else num_gpus), num_gpus) if score and score.scorer in LOADS_MODEL else 0
    if generate is None:
        return Share(0, scorers)
    cpus, gpus = generate.execution.cpus_per_actor or 1, generate.execution.tensor_parallel
    num_actors = generate.execution.num_actors
    least = min(num_actors or 1, num_fitting(nodes, cpus, gpus))

    def engines_beside(number: int) -> int:
        return num_fitting(_without_gpus(nodes, number, cpus, gpus), cpus, gpus)

    while engines_beside(scorers) < least:
        scorers -= 1
    engines = num_actors or engines_beside(scorers)
    while 0 < scorers < num_gpus and wanted is None and engines_beside(scorers + 1) >= engines:
        scorers += 1
    return Share(engines, scorers)


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


@dataclass(frozen=True)
class EnginePlacement:
    """The nodes for engines, how many engines there are, and what each takes."""

    nodes: Nodes
    number: int
    cpus: int
    """Cores that Ray reserves."""
    gpus: int
    threads: int
    """Threads that it computes with where it has no GPU."""

    @property
    def cores_in_use(self) -> int:
        """Cores that one engine keeps busy. On GPUs vLLM computes in processes of its own, one for each GPU."""
        return self.cpus + self.gpus if self.gpus else self.threads


def engine_placement(capacity: ClusterCapacity, generate: Generate, score: Score | None) -> EnginePlacement:
    """Return on what engines run: on GPUs if there are any, else one on the cores of a node."""
    execution = generate.execution
    if engines_use_gpu(generate, capacity.has_gpu):
        cpus, gpus = execution.cpus_per_actor or 1, execution.tensor_parallel
        nodes = capacity.nodes_for(cpus, gpus)
        return EnginePlacement(nodes, share_gpus(nodes, generate, score).engines, cpus, gpus, cpus)
    nodes, number = capacity.nodes_for(1), execution.num_actors or 1
    threads = execution.cpus_per_actor or cores_each(nodes, number) or 1
    threads = max(1, min(threads, most_cores(nodes)))
    # One of several cores is not reserved, because Ray Data's tasks need a core to run on.
    return EnginePlacement(nodes, number, max(1, threads - 1), 0, threads)


def spare_cores(nodes: Nodes, engine: EnginePlacement | None) -> Nodes:
    """Return the nodes with the cores that engines leave to scorers, less one for Ray where many are left."""
    remaining = Counter(nodes)
    num_engines = min(engine.number, num_fitting(nodes, engine.cpus, engine.gpus)) if engine else 0
    for _ in range(num_engines):
        assert engine is not None
        fitting = [
            shape for shape, count in remaining.items() if count and _num_fitting_on(shape, engine.cpus, engine.gpus)
        ]
        if not fitting:
            break
        cores, gpus = shape = max(fitting)
        remaining[shape] -= 1
        remaining[max(0, cores - engine.cores_in_use), gpus - engine.gpus] += 1
    spare: Nodes = Counter()
    for (cores, _), count in remaining.items():
        spare[cores - (cores > FEW_CORES), 0] += count
    return +spare


@dataclass(frozen=True)
class ScorerPlacement:
    """How many scorers there are, and what each takes."""

    number: int
    cpus: int
    """Cores that Ray reserves."""
    gpus: int
    threads: int
    """Threads that it computes with where it has no GPU."""


def scorer_placement(
    capacity: ClusterCapacity, score: Score, generate: Generate | None, num_blocks: int
) -> ScorerPlacement:
    """Return on what scorers run: each on one GPU, or on the cores that engines leave; services need neither.

    On a single machine they reserve no core, because the engine has reserved them. On several nodes each reserves
    cores, so that none lands on a head node without cores and an autoscaler sees the demand; but not where engines
    could take the last core of a node and leave none for scorers.

    Args:
        capacity: of the cluster.
        score: the section of the scorer.
        generate: the section of what is sampled at the same time, None if nothing is.
        num_blocks: blocks that are to be scored; by default there are no more scorers than these.
    """
    wanted = score.execution.num_actors
    engine = engine_placement(capacity, generate, score) if generate else None
    if capacity.has_gpu and score.scorer in LOADS_MODEL:
        on_gpus = engine is not None and engine.gpus > 0
        nodes = engine.nodes if engine and on_gpus else capacity.nodes_for(0, 1)
        number = max(1, share_gpus(nodes, generate if on_gpus else None, score).scorers)
        return ScorerPlacement(number if wanted else min(number, num_blocks), 0, 1, 0)
    spare = spare_cores(capacity.nodes_for(1), engine)
    num_by_default = _num_on_cores(spare, score)
    number = wanted or min(num_by_default, num_blocks)
    threads = cores_each(spare, wanted or num_by_default)
    if capacity.maximum.total() == 1:
        return ScorerPlacement(number, 0, 0, threads or 1)
    if score.scorer in SERVICES or not threads:
        is_safe = engine is None or leaves_spare_core(capacity.maximum, engine.cpus, engine.gpus)
        return ScorerPlacement(number, int(is_safe), 0, threads or 1)
    # With few cores one of them is not reserved, because Ray Data's tasks need a core to run on.
    cpus = threads if most_cores(spare) > FEW_CORES else max(1, threads - 1)
    return ScorerPlacement(number, cpus, 0, threads)


def _num_on_cores(spare: Nodes, score: Score) -> int:
    """Return how many scorers make the most of spare cores. A model's operations use all cores of a node by themselves,
    the embedded scorer's threads a few; services and ``dummy`` compute nothing."""
    if score.scorer in LOADS_MODEL:
        return max(1, sum(count for (cores, _), count in spare.items() if cores))
    if score.scorer != "embedding" or not most_cores(spare):
        return 1
    fewest, most = (min(threads, most_cores(spare)) for threads in SCORER_THREADS)
    threads = max(range(fewest, most + 1), key=lambda each: (each * num_fitting(spare, each), each))
    return num_fitting(spare, threads)


def block_size(generate: Generate, fills_steps: bool) -> int:
    """Return how many prompts a block has.

    Args:
        generate: the section of the experiment file, which may say it.
        fills_steps: whether the completions of a block should fill a step of vLLM on a GPU.
    """
    num_filling = math.ceil((generate.execution.max_num_seqs or MAX_NUM_SEQS) / generate.k)
    return generate.execution.batch_size or max(LEAST_PROMPTS, num_filling if fills_steps else 0)
