"""Share GPUs between an engine and a scorer where there are not enough for both to have their own.

Both get a part of the GPU's memory if their weights fit side by side. Otherwise all prompts are sampled first, and
scored when the engines have left the GPUs. A scorer that needs a GPU never moves to the CPU.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.config import LOADS_CLASSIFIER, LOADS_MODEL, Generate, Score
from xgray.distributed.actors import PipelineModel, PipelineSettings
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.nodes import (
    ENGINE_GIB,
    SCORER_GIB,
    USABLE_MEMORY,
    ClusterCapacity,
    engines_use_gpu,
    share_gpus,
)

log = logging.getLogger(__name__)

GIB = 2**30
PROBE_SECONDS = 60.0
"""How long to wait for the nodes with GPUs to say how much memory these have; the first call imports PyTorch."""
STEP = 0.01
"""The parts are multiples of it."""


@dataclass(frozen=True)
class GpuParts:
    """The parts of one GPU's memory that an engine and a scorer take, between 0 and 1."""

    engine: float
    scorer: float


def lacks_gpus(capacity: ClusterCapacity, generate: Generate, score: Score) -> bool:
    """Return whether the engines leave no GPU to scorers that load a model."""
    if score.scorer not in LOADS_MODEL or not engines_use_gpu(generate, capacity.has_gpu):
        return False
    nodes = capacity.nodes_for(generate.execution.cpus_per_actor or 1, generate.execution.tensor_parallel)
    return share_gpus(nodes, generate, score).scorers == 0


def share_memory(
    total: float, engine_weights: float, scorer_weights: float, generate: Generate, score: Score
) -> GpuParts | None:
    """Return the parts of a GPU that an engine and a scorer take; None if it cannot hold both.

    Args:
        total: the GPU's memory, in bytes.
        engine_weights: the weights that the engine loads, in bytes.
        scorer_weights: those of the scorer.
        generate: may fix the engine's part.
        score: may fix the scorer's part.
    """
    least_engine = (engine_weights + ENGINE_GIB * GIB) / total
    least_scorer = math.ceil((scorer_weights + SCORER_GIB * GIB) / total / STEP) * STEP
    scorer = score.execution.gpu_memory_utilization or least_scorer
    engine = generate.execution.gpu_memory_utilization or math.floor((USABLE_MEMORY - scorer) / STEP + 1e-9) * STEP
    if engine < least_engine or scorer < least_scorer - 1e-9 or engine + scorer > 1:
        return None
    return GpuParts(round(engine, 2), round(scorer, 2))


def gpu_passes(settings: PipelineSettings, models: Iterable[PipelineModel]) -> list[PipelineSettings]:
    """Return the passes in which a pipeline runs: one, or two where engines and scorers take turns on the GPUs.

    Args:
        settings: of the whole pipeline.
        models: those that have prompts to sample; without any the scorers have the GPUs to themselves.
    """
    generate, score, models = settings.generate, settings.score, list(models)
    if generate is None or score is None or not models or not lacks_gpus(cluster_capacity(), generate, score):
        return [settings]
    parts = _parts(generate, score, models)
    if parts is None:
        log.warning(
            "score.scorer: the engines take all GPUs, and %s is not known to fit beside one: all prompts are sampled "
            "first and scored then",
            score.name,
        )
        return [replace(settings, score=None), replace(settings, generate=None, engine=None)]
    log.info("%s shares a GPU with an engine: %s and %s of its memory", score.name, parts.scorer, parts.engine)
    sections = {"generate": _with_part(generate, parts.engine), "score": _with_part(score, parts.scorer)}
    return [replace(settings, **sections, scorer_gpu=parts.scorer)]


def _with_part(section: Any, part: float) -> Any:
    execution = section.execution.model_copy(update={"gpu_memory_utilization": part})
    return section.model_copy(update={"execution": execution})


def _parts(generate: Generate, score: Score, models: Iterable[PipelineModel]) -> GpuParts | None:
    if generate.execution.tensor_parallel > 1 or (score.execution.num_actors or 1) > 1:
        return None  # Ray gives out parts of a single GPU; of several, whole ones
    total = _least_gpu_memory()
    if total is None:
        return None
    weights = {model.weights for model in models}
    largest = max(weights_bytes(each.path, each.revision, each.dtype) for each in weights)
    return share_memory(total, largest, _scorer_bytes(score), generate, score)


def weights_bytes(path: str, revision: str | None, dtype: str, kind: Any = None) -> int:
    """Return the bytes of a model's weights in the given precision, from its configuration alone.

    Args:
        path: what :func:`xgray.models.source.local_weights` takes.
        revision: a commit of the hub.
        dtype: the name of the precision.
        kind: see :func:`xgray.models.load.load_skeleton`.
    """
    import torch

    from xgray.models.load import load_skeleton

    skeleton = load_skeleton(path, revision, kind)
    size: int = getattr(torch, dtype).itemsize
    return sum(parameter.numel() for parameter in skeleton.parameters()) * size


def _scorer_bytes(score: Score) -> int:
    from transformers import AutoModelForSequenceClassification

    from xgray.models.source import resolve

    is_classifier = score.scorer in LOADS_CLASSIFIER
    options = score.classifier if is_classifier else score.guard
    model = options.model if options else None
    assert model is not None  # the scorer was built before, without its weights
    kind = AutoModelForSequenceClassification if is_classifier else None
    return weights_bytes(resolve(model), model.revision, model.dtype, kind)


def _least_gpu_memory() -> int | None:
    """Return the memory of the smallest GPU that is alive, in bytes; None if a node does not say."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= 1]
    probe = ray.remote(gpu_memory)
    refs = [
        probe.options(
            num_cpus=0, num_gpus=STEP, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
        ).remote()
        for node in nodes
    ]
    answered, _ = ray.wait(refs, num_returns=len(refs), timeout=PROBE_SECONDS) if refs else ([], [])
    sizes = ray.get(answered)
    return min(sizes) if len(sizes) == len(nodes) and sizes and None not in sizes else None


def gpu_memory() -> int | None:
    """Return the memory in bytes of this process's GPU; None where PyTorch sees none."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
