"""The stage ``vectors``: from the probe and the English prompts to the sources in ``metrics.json``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xgray.config import Model, Neuron, Vectors
from xgray.data.prompts import check_english, prompts_fingerprint, read_prompts
from xgray.experiment.checks import check_mlps
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.experiment.stages.probe import read_probe
from xgray.mechanism.probe import FeatureArray
from xgray.mechanism.vectors import CONFIDENCE, RESAMPLES, LayerCosines, ValueVector, activation_intervals, overlap
from xgray.rows import Prompt
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.storage.folder import Folder
from xgray.storage.tensors import read_tensors

log = logging.getLogger(__name__)

POTENTIAL = "potential.json"


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the sources depend on: the probe, the English prompts, the section and the seed."""
    experiment, section = plan.experiment, plan.experiment.vectors
    assert section is not None
    check_english(experiment.prompts, experiment.languages, "vectors")
    inputs = {
        "probe": plan.stage("probe").fingerprint,
        "prompts": prompts_fingerprint(experiment.prompts.at_most(section.limit), ["en"]),
    }
    return inside_payload(plan, section, inputs, seed=experiment.seed)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Refuse a model whose MLPs are of an unknown kind, and given neurons that it does not have."""
    section = plan.experiment.vectors
    assert section is not None
    check_mlps(plan.experiment, section.given, "vectors.given")


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Find the potential sources, measure their activations, and say which are actual ones. Ray must be up."""
    began = time.perf_counter()
    experiment, folder = plan.experiment, planned.folder
    section = experiment.vectors
    assert section is not None
    prompts = list(read_prompts(experiment.prompts.at_most(section.limit), ["en"]))
    w = read_probe(plan.finished("probe").folder)
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
        lambda done, total: on_progress(planned.label, done, total),
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


BATCHES = 4
"""Batches of prompts in one unit of work, and one file of activations."""


def find_potential_sources(
    model: Model, section: Vectors, w: FeatureArray, prompts: Sequence[Prompt]
) -> tuple[list[ValueVector], list[LayerCosines]]:
    """The value vectors of highest cosine with the probe, and what all layers have. Ray must be up.

    Args:
        prompts: checked beforehand, so that none is refused after others were measured.

    Raises:
        InputError: the model cannot be loaded, or the probe or a prompt does not fit it.
        StageError: the worker died again and again.
    """
    from xgray.distributed.workers import run_on_workers

    (found,) = run_on_workers(PotentialWorker, (model, section, w), [list(prompts)], "vectors", 1)
    return found


@dataclass(frozen=True)
class SourceActivations:
    values: FeatureArray
    """``(num_prompts, num_neurons)``, in the order of the prompts."""
    num_reused: int
    device: str


def measure_sources(
    model: Model,
    section: Vectors,
    neurons: Sequence[Neuron],
    prompts: Sequence[Prompt],
    folder: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceActivations:
    """Mean activations after each prompt, in files ``folder/{unit}.safetensors``. Ray must be up.

    Args:
        on_progress: called with how many prompts are done, and how many there are.

    Raises:
        InputError: the model cannot be loaded, or what it computes are no numbers.
        StageError: workers died again and again; the same call goes on where it stopped. A file is damaged.
    """
    from xgray.distributed.workers import Work, make_missing

    size = BATCHES * section.execution.batch_size
    units = []
    for start in range(0, len(prompts), size):
        texts = [one.text for one in prompts[start : start + size]]
        file = f"{start:06}-{start + len(texts):06}.safetensors"
        units.append(Work(file, len(texts), (file, texts)))
    arguments, num_workers = (model, section, list(neurons), folder), section.execution.num_workers
    made = make_missing(SourcesWorker, arguments, units, folder, "vectors", num_workers, on_progress)
    activations = [read_tensors(folder, one.file, "activations")["activations"] for one in units]
    return SourceActivations(np.concatenate(activations), made.reused, made.device)


class PotentialWorker:
    """One copy of the model, whose weights are looked at."""

    def __init__(self, model: Model, section: Vectors, w: FeatureArray) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.w = w

    def work(self, unit: list[Prompt]) -> tuple[list[ValueVector], list[LayerCosines]]:
        """Check the prompts, and find the potential sources."""
        from xgray.mechanism.vectors import potential_sources
        from xgray.models.load import check_lengths, context_length

        section = self.section
        room = context_length(self.model.config) - section.new_tokens
        check_lengths([unit], self.tokenizer, room, "the model's context less vectors.new_tokens")
        return potential_sources(self.model, self.tokenizer, self.w, section.top_k, section.num_tokens)


class SourcesWorker:
    """One copy of the model, which goes on from prompts."""

    def __init__(self, model: Model, section: Vectors, neurons: list[Neuron], folder: Folder) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.neurons = neurons
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Measure and write one unit's activations; the device."""
        from safetensors.numpy import save

        from xgray.mechanism.activations import measure_activations
        from xgray.models.load import device_name

        name, texts = unit
        section = self.section
        found, _ = measure_activations(
            self.model, self.tokenizer, texts, self.neurons, section.new_tokens, section.execution.batch_size
        )
        self.folder.write_bytes(name, save({"activations": found}))
        return device_name()
