"""The stage ``activations`` of one model: from prompts to ``rows/{language}.parquet`` and ``metrics.json``.

A tuned model's metrics hold its change against the base model, which is measured first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from xgray.config import BASE, Activations, Neuron
from xgray.data.prompts import prompts_fingerprint, read_prompts
from xgray.experiment.checks import check_mlps
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.experiment.weights import model_weights
from xgray.generate.engine import Weights
from xgray.mechanism.activation_metrics import (
    ActivationRows,
    activation_changes,
    activation_metrics,
    read_activations,
    rows_file,
    write_activations,
)
from xgray.mechanism.neurons import NO_SOURCES, actual_sources
from xgray.models.load import check_lengths, context_length, load_config, load_tokenizer
from xgray.rows import Prompt
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.storage.folder import Folder


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the activations depend on: the model, the neurons, the prompts, the section and the seed."""
    experiment, section = plan.experiment, plan.experiment.activations
    assert section is not None
    inputs = {"prompts": prompts_fingerprint(experiment.prompts.at_most(section.limit), experiment.languages)}
    if section.neurons is None:
        inputs["vectors"] = plan.stage("vectors").fingerprint
    intervals = experiment.evaluate.model_dump(include={"confidence", "resamples"})
    return inside_payload(plan, section, inputs, model, intervals=intervals, seed=experiment.seed)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Refuse a model whose MLPs are of an unknown kind, and listed neurons that it does not have."""
    section = plan.experiment.activations
    assert section is not None
    check_mlps(plan.experiment, section.neurons, "activations.neurons")


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Measure what is not measured yet, and write the metrics: without neurons, why there are none. Ray must be up.

    Raises:
        InputError: prompts do not fit, or a stage that is needed is not finished.
        StageError: workers died; the same call goes on.
    """
    began = time.perf_counter()
    experiment, section, model = plan.experiment, plan.experiment.activations, planned.model or BASE
    assert section is not None
    plan.require_model(model)
    neurons = section.neurons or actual_sources(plan.finished("vectors").folder)
    if not neurons:
        planned.folder.write_json("metrics.json", {"neurons": [], "reason": NO_SOURCES})
        return StageResult({"num_neurons": 0}, {"reason": NO_SOURCES}, seconds=time.perf_counter() - began)
    weights, _ = model_weights(plan, model)
    read = read_prompts(experiment.prompts.at_most(section.limit), experiment.languages)
    prompts = {language: list(own) for language, own in groupby(read, lambda prompt: prompt.language)}
    check_lengths(
        prompts.values(),
        load_tokenizer(weights.path, weights.revision),
        context_length(load_config(weights.path, weights.revision)) - section.new_tokens,
        "the model's context less activations.new_tokens",
    )
    result = collect_activations(
        weights,
        neurons,
        section,
        prompts,
        planned.rows,
        lambda done, total: on_progress(planned.label, done, total),
    )
    rows = read_activations(planned.rows, list(prompts))
    drawn = (experiment.evaluate.confidence, experiment.evaluate.resamples, experiment.seed)
    metrics = {
        "neurons": neurons,
        "new_tokens": section.new_tokens,
        "confidence": experiment.evaluate.confidence,
        **activation_metrics(rows, *drawn),
    }
    if model != BASE:
        before = read_activations(plan.finished("activations", BASE).rows, list(prompts))
        metrics["change"] = activation_changes(before, rows, *drawn)
    planned.folder.write_json("metrics.json", metrics)
    result.counts["num_tokens"] = metrics["average"]["num_tokens"]
    result.measured["mean"] = metrics["average"]["mean"]["value"]
    result.seconds = time.perf_counter() - began
    return result


def collect_activations(
    weights: Weights,
    neurons: Sequence[Neuron],
    section: Activations,
    prompts: Mapping[str, Sequence[Prompt]],
    rows: Folder,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Write the rows of every language that has none yet. Ray must be up.

    Args:
        prompts: by language.
        on_progress: called with how many prompts are done, and how many there are.

    Raises:
        InputError: the model cannot be loaded, or a neuron is none of it.
        StageError: workers died again and again; the same call goes on where it stopped.
    """
    from xgray.distributed.workers import Work, make_missing

    # The language with most prompts first, so that no worker is left with it at the end.
    languages = sorted(prompts, key=lambda language: -len(prompts[language]))
    units = [Work(rows_file(one), len(prompts[one]), (one, prompts[one])) for one in languages]
    arguments, num_workers = (weights, neurons, section, rows), section.execution.num_workers
    made = make_missing(ActivationWorker, arguments, units, rows, "activations", num_workers, on_progress)
    return StageResult({"num_prompts": made.total, "num_reused": made.reused}, device=made.device)


class ActivationWorker:
    """One copy of the model."""

    def __init__(self, weights: Weights, neurons: Sequence[Neuron], section: Activations, rows: Folder) -> None:
        from xgray.mechanism.neurons import check_neurons
        from xgray.models.load import load_causal_lm, load_tokenizer

        self.neurons, self.section, self.rows = neurons, section, rows
        self.tokenizer = load_tokenizer(weights.path, weights.revision)
        self.model = load_causal_lm(weights.path, weights.dtype, weights.revision)
        check_neurons(neurons, self.model, "activations.neurons")

    def work(self, unit: tuple[str, Sequence[Prompt]]) -> str:
        """Measure and write one language; the device."""
        from xgray.errors import InputError
        from xgray.mechanism.activations import measure_activations

        language, prompts = unit
        texts = [prompt.text for prompt in prompts]
        try:
            means, num_tokens = measure_activations(
                self.model,
                self.tokenizer,
                texts,
                self.neurons,
                self.section.new_tokens,
                self.section.execution.batch_size,
            )
        except InputError as error:
            raise InputError(f"activations: {language}: {error}") from None
        ids = [prompt.prompt_id for prompt in prompts]
        write_activations(self.rows, language, ActivationRows(ids, means, num_tokens))
        return str(self.model.device)
