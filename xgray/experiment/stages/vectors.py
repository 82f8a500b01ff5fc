"""Stage ``vectors``: find the value vectors that point in the probe's direction, and which of them are active.

    probe, model ─▶ vectors/potential.json ─┐
    English prompts ────────────────────────┴─▶ vectors/activations/{unit}.safetensors ─▶ vectors/metrics.json

One worker compares all value vectors with the probe; then workers measure the activations of the potential sources, a
unit of work being a few batches of prompts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xgray.config import Model, Neuron, Vectors
from xgray.data.prompts import check_english, prompts_fingerprint, read_prompts
from xgray.data.source import resolve_input
from xgray.experiment.checks import check_mlps
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.experiment.stages.probe import read_probe
from xgray.mechanism.metrics_file import GivenOverlaps, LayerEntry, VectorEntry, VectorsMetrics
from xgray.mechanism.probe import FeatureArray, read_probe_file
from xgray.mechanism.vectors import CONFIDENCE, LayerCosines, ValueVector, activation_intervals, overlap
from xgray.rows import Prompt
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.stats.values import MetricValue
from xgray.storage.fingerprint import file_fingerprint
from xgray.storage.folder import Folder
from xgray.storage.tensors import read_tensors

log = logging.getLogger(__name__)

POTENTIAL = "potential.json"
"""File of the potential sources, so that they are not searched for again after an interruption."""
BATCHES = 4
"""Number of batches of prompts in one unit of work, and in one file of activations."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the sources depend on: the probe, the English prompts, the section and the seed."""
    experiment, section = plan.experiment, plan.experiment.vectors
    assert section is not None
    check_english(experiment.prompts, experiment.languages, "vectors")
    if section.probe:
        probe = {"probe_file": file_fingerprint(resolve_input(section.probe, "probe"))}
    else:
        probe = {"probe": plan.stage("probe").fingerprint}
    inputs = {
        **probe,
        "prompts": prompts_fingerprint(experiment.prompts.at_most(section.limit), ["en"]),
    }
    return inside_payload(plan, section, inputs, seed=experiment.seed)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the architecture's MLPs are known and that the model has the given neurons.

    Raises:
        InputError: they are not, or it does not.
    """
    section = plan.experiment.vectors
    assert section is not None
    check_mlps(plan.experiment, section.given, "vectors.given")


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Find the potential sources, measure their activations, and write ``metrics.json``. Ray must be running.

    Raises:
        InputError: the stage probe is not finished, the model cannot be loaded, or the probe or a prompt does not fit.
        StageError: workers died repeatedly, or a file is damaged. Results so far are kept: the same call continues.
    """
    began = time.perf_counter()
    experiment, folder = plan.experiment, planned.folder
    section = experiment.vectors
    assert section is not None
    prompts = list(read_prompts(experiment.prompts.at_most(section.limit), ["en"]))
    base = experiment.model.model_copy(update={"dtype": section.dtype})
    w = read_probe_file(section.probe) if section.probe else read_probe(plan.finished("probe").folder)
    if not folder.exists(POTENTIAL):
        vectors, layers = find_potential_sources(base, section, w, prompts)
        _write_potential(folder, vectors, layers)
    vectors, layers = _read_potential(folder)
    potential = [vector.neuron for vector in vectors]
    measured = measure_sources(
        base,
        section,
        potential,
        prompts,
        folder / "activations",
        lambda done, total: on_progress(planned.label, done, total),
    )
    means = activation_intervals(measured.values.astype(float))
    sources = [
        neuron for neuron, mean in zip(potential, means, strict=True) if mean["value"] is not None and mean["value"] > 0
    ]
    if not sources:
        log.warning(
            "None of the %d potential sources is active after the prompts, so there are no actual sources. "
            "A larger vectors.top_k may find some.",
            len(potential),
        )
    num_neurons = sum(layer.num_neurons for layer in layers)
    metrics: VectorsMetrics = {
        "sources": [list(neuron) for neuron in sources],
        "num_neurons": num_neurons,
        "num_prompts": len(prompts),
        "new_tokens": section.new_tokens,
        "confidence": CONFIDENCE,
        "vectors": [
            _vector_entry(vector, mean, vector.neuron in sources) for vector, mean in zip(vectors, means, strict=True)
        ],
        "layers": _layer_entries(layers, potential, sources),
        "given": _given_overlaps(section.given, potential, sources, num_neurons),
    }
    folder.write_json("metrics.json", metrics)
    counts = {
        "num_prompts": len(prompts),
        "num_reused": measured.num_reused,
        "num_potential": len(potential),
        "num_sources": len(sources),
    }
    return StageResult(counts, device=measured.device, seconds=time.perf_counter() - began)


def _write_potential(folder: Folder, vectors: Sequence[ValueVector], layers: Sequence[LayerCosines]) -> None:
    content = {"vectors": [asdict(vector) for vector in vectors], "layers": [asdict(layer) for layer in layers]}
    folder.write_json(POTENTIAL, content)


def _read_potential(folder: Folder) -> tuple[list[ValueVector], list[LayerCosines]]:
    content = folder.read_mapping(POTENTIAL)
    vectors = [ValueVector(**vector) for vector in content["vectors"]]
    return vectors, [LayerCosines(**layer) for layer in content["layers"]]


def _vector_entry(vector: ValueVector, mean: MetricValue, is_source: bool) -> VectorEntry:
    return {
        "layer": vector.layer,
        "index": vector.index,
        "cosine": vector.cosine,
        "tokens": vector.tokens,
        "mean_activation": mean,
        "source": is_source,
    }


def _layer_entries(
    layers: Sequence[LayerCosines], potential: Sequence[Neuron], sources: Sequence[Neuron]
) -> list[LayerEntry]:
    return [
        {
            "num_neurons": cosines.num_neurons,
            "mean": cosines.mean,
            "max": cosines.max,
            "num_potential": sum(neuron[0] == layer for neuron in potential),
            "num_sources": sum(neuron[0] == layer for neuron in sources),
        }
        for layer, cosines in enumerate(layers)
    ]


def _given_overlaps(
    given: Sequence[Neuron], potential: Sequence[Neuron], sources: Sequence[Neuron], num_neurons: int
) -> GivenOverlaps | None:
    """Compare the neurons listed in the experiment file with those found; None where it lists none."""
    if not given:
        return None
    return {
        "num_given": len(given),
        "potential": overlap(given, potential, num_neurons),
        "sources": overlap(given, sources, num_neurons),
    }


def find_potential_sources(
    model: Model, section: Vectors, w: FeatureArray, prompts: Sequence[Prompt]
) -> tuple[list[ValueVector], list[LayerCosines]]:
    """Find the value vectors with the highest cosine with the probe, on one worker. Ray must be running.

    Args:
        w: the probe, ``(hidden_size,)``.
        prompts: their lengths are checked here, so that none is refused after others were measured.

    Returns:
        The value vectors, the highest cosine first, and statistics of each layer.

    Raises:
        InputError: the model cannot be loaded, or the probe or a prompt does not fit it.
        StageError: the worker died repeatedly.
    """
    from xgray.distributed.workers import run_on_workers

    (result,) = run_on_workers(PotentialWorker, (model, section, w), [list(prompts)], "vectors", 1)
    return result


@dataclass(frozen=True)
class SourceActivations:
    """The mean activations of the potential sources after each prompt."""

    values: FeatureArray
    """``(num_prompts, num_neurons)``, in the order of the prompts."""
    num_reused: int
    """Number of prompts that were measured in an earlier attempt."""
    device: str


def measure_sources(
    model: Model,
    section: Vectors,
    neurons: Sequence[Neuron],
    prompts: Sequence[Prompt],
    folder: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceActivations:
    """Measure the neurons' mean activations after each prompt, in files ``folder/{unit}.safetensors``.

    Ray must be running.

    Args:
        on_progress: called with the number of finished prompts and the number of all prompts.

    Raises:
        InputError: the model cannot be loaded, or activations or logits are not finite.
        StageError: workers died repeatedly, or a file is damaged. The same call continues.
    """
    from xgray.distributed.workers import Work, compute_missing

    size = BATCHES * section.execution.batch_size
    units = []
    for start in range(0, len(prompts), size):
        texts = [prompt.text for prompt in prompts[start : start + size]]
        file = f"{start:06}-{start + len(texts):06}.safetensors"
        units.append(Work(file, len(texts), (file, texts)))
    arguments, num_workers = (model, section, list(neurons), folder), section.execution.num_workers
    computed = compute_missing(SourcesWorker, arguments, units, folder, "vectors", num_workers, on_progress)
    activations = [read_tensors(folder, unit.file, "activations")["activations"] for unit in units]
    return SourceActivations(np.concatenate(activations), computed.reused, computed.device)


class PotentialWorker:
    """Compares the value vectors of one copy of the model with the probe."""

    def __init__(self, model: Model, section: Vectors, w: FeatureArray) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.w = w

    def work(self, unit: list[Prompt]) -> tuple[list[ValueVector], list[LayerCosines]]:
        """Check the lengths of the prompts, and return the potential sources and the statistics of each layer."""
        from xgray.mechanism.vectors import potential_sources
        from xgray.models.load import check_lengths, context_length

        section = self.section
        room = context_length(self.model.config) - section.new_tokens - (section.protocol == "released")
        check_lengths([unit], self.tokenizer, room, "the model's context less vectors.new_tokens")
        return potential_sources(self.model, self.tokenizer, self.w, section.top_k, section.num_tokens)


class SourcesWorker:
    """Measures the potential sources' activations with one copy of the model."""

    def __init__(self, model: Model, section: Vectors, neurons: list[Neuron], folder: Folder) -> None:
        from xgray.models.load import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.neurons = neurons
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Measure and write the activations of one unit, and return the name of the device."""
        from safetensors.numpy import save

        from xgray.mechanism.activations import measure_activations
        from xgray.models.load import device_name

        name, texts = unit
        section = self.section
        activations, _ = measure_activations(
            self.model,
            self.tokenizer,
            texts,
            self.neurons,
            section.new_tokens,
            section.execution.batch_size,
            protocol=section.protocol,
        )
        self.folder.write_bytes(name, save({"activations": activations}))
        return device_name()
