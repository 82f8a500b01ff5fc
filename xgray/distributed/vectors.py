"""Value vectors over Ray: one worker finds the potential sources, then all measure them on the English prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xgray.config import Model, Neuron, Vectors
from xgray.distributed.spread import Work, make_missing, spread
from xgray.mechanism.probe import FeatureArray
from xgray.mechanism.vectors import LayerCosines, ValueVector
from xgray.rows import Prompt
from xgray.storage import Folder
from xgray.tensors import read_tensors

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
    (found,) = spread(PotentialWorker, (model, section, w), [list(prompts)], "vectors", 1)
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
        from xgray.models import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.w = w

    def work(self, unit: list[Prompt]) -> tuple[list[ValueVector], list[LayerCosines]]:
        """Check the prompts, and find the potential sources."""
        from xgray.mechanism.vectors import potential_sources
        from xgray.models import check_lengths, context_length

        section = self.section
        room = context_length(self.model.config) - section.new_tokens
        check_lengths([unit], self.tokenizer, room, "the model's context less vectors.new_tokens")
        return potential_sources(self.model, self.tokenizer, self.w, section.top_k, section.num_tokens)


class SourcesWorker:
    """One copy of the model, which goes on from prompts."""

    def __init__(self, model: Model, section: Vectors, neurons: list[Neuron], folder: Folder) -> None:
        from xgray.models import load_model

        self.model, self.tokenizer = load_model(model)
        self.section = section
        self.neurons = neurons
        self.folder = folder

    def work(self, unit: tuple[str, list[str]]) -> str:
        """Measure and write one unit's activations; the device."""
        from safetensors.numpy import save

        from xgray.mechanism.activations import measure_activations
        from xgray.models import device_name

        name, texts = unit
        section = self.section
        found, _ = measure_activations(
            self.model, self.tokenizer, texts, self.neurons, section.new_tokens, section.execution.batch_size
        )
        self.folder.write_bytes(name, save({"activations": found}))
        return device_name()
