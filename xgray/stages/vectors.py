"""The stage ``vectors``: from the probe and the English prompts to the sources in ``metrics.json``."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from xgray.config import Neuron
from xgray.data.rtp_lx import read_prompts
from xgray.distributed.vectors import find_potential_sources, measure_sources
from xgray.mechanism.vectors import (
    CONFIDENCE,
    RESAMPLES,
    LayerCosines,
    ValueVector,
    activation_intervals,
    overlap,
)
from xgray.meter import OnProgress
from xgray.plan import Plan, Planned
from xgray.runs import StageResult
from xgray.stages.probe import read_probe
from xgray.storage import Folder

log = logging.getLogger(__name__)

POTENTIAL = "potential.json"


def run(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Find the potential sources, measure their activations, and say which are actual ones. Ray must be up."""
    began = time.perf_counter()
    experiment, folder = plan.experiment, one.place.folder
    section = experiment.vectors
    assert section is not None
    prompts = list(read_prompts(experiment.prompts.at_most(section.limit), ["en"]))
    w = read_probe(plan.stage("probe").place.folder)
    if not folder.exists(POTENTIAL):
        vectors, layers = find_potential_sources(experiment.model, section, w, prompts)
        told = {"vectors": [asdict(one) for one in vectors], "layers": [asdict(one) for one in layers]}
        folder.write_json(POTENTIAL, told)
    vectors, layers = _read_potential(folder)
    potential = [one.neuron for one in vectors]
    measured = measure_sources(
        experiment.model,
        section,
        potential,
        prompts,
        folder / "activations",
        lambda done, total: on_progress(one.place.label, done, total),
    )
    means = activation_intervals(measured.values.astype(float), potential, experiment.seed)
    sources = [neuron for neuron, mean in zip(potential, means, strict=True) if mean["value"] > 0]
    if not sources:
        log.warning("no potential source is active after the prompts (vectors.top_k %d): no sources", section.top_k)
    folder.write_json(
        "metrics.json",
        {
            "sources": [list(neuron) for neuron in sources],
            "num_neurons": sum(layer.num_neurons for layer in layers),
            "num_prompts": len(prompts),
            "new_tokens": section.new_tokens,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "vectors": [
                {**asdict(vector), "mean_activation": mean, "source": vector.neuron in sources}
                for vector, mean in zip(vectors, means, strict=True)
            ],
            "layers": _by_layer(layers, potential, sources),
            "given": _overlaps(section.given, potential, sources, sum(layer.num_neurons for layer in layers)),
        },
    )
    counts = {
        "num_prompts": len(prompts),
        "num_reused": measured.num_reused,
        "num_potential": len(potential),
        "num_sources": len(sources),
    }
    return StageResult(counts, device=measured.device, seconds=time.perf_counter() - began)


def _read_potential(folder: Folder) -> tuple[list[ValueVector], list[LayerCosines]]:
    told = folder.read_json(POTENTIAL)
    return [ValueVector(**one) for one in told["vectors"]], [LayerCosines(**one) for one in told["layers"]]


def _by_layer(
    layers: Sequence[LayerCosines], potential: Sequence[Neuron], sources: Sequence[Neuron]
) -> list[dict[str, Any]]:
    return [
        {
            **asdict(one),
            "num_potential": sum(neuron[0] == layer for neuron in potential),
            "num_sources": sum(neuron[0] == layer for neuron in sources),
        }
        for layer, one in enumerate(layers)
    ]


def _overlaps(
    given: Sequence[Neuron], potential: Sequence[Neuron], sources: Sequence[Neuron], num_neurons: int
) -> dict[str, Any] | None:
    """With the list of the experiment file; None where it has none."""
    if not given:
        return None
    return {
        "num_given": len(given),
        "potential": overlap(given, potential, num_neurons),
        "sources": overlap(given, sources, num_neurons),
    }
