"""Stage ``activations``: measure the mean activations of neurons after the prompts, for each model (Figure 3).

    prompts ─▶ activations/{model}/rows/{language}.parquet ─▶ activations/{model}/metrics.json

The metrics of a tuned model include its change from the base model, which is measured first. A unit of work is the
prompts of one language.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from xgray.mechanism.metrics_file import ActivationsMetrics
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
    """Check that the architecture's MLPs are known and that the model has the listed neurons.

    Raises:
        InputError: they are not, or it does not.
    """
    section = plan.experiment.activations
    assert section is not None
    check_mlps(plan.experiment, section.neurons, "activations.neurons")


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Measure the languages that have no rows yet, and write ``metrics.json``. Ray must be running.

    If the stage vectors found no sources, the metrics only say so.

    Raises:
        InputError: a prompt does not fit the model's context, or a stage that this one needs is not finished.
        StageError: workers died repeatedly. Results so far are kept: the same call continues.
    """
    began = time.perf_counter()
    experiment, section, model = plan.experiment, plan.experiment.activations, planned.model or BASE
    assert section is not None
    plan.require_model(model)
    neurons = section.neurons or actual_sources(plan.finished("vectors").folder)
    if not neurons:
        planned.folder.write_json("metrics.json", {"neurons": [], "reason": NO_SOURCES})
        return StageResult({"num_neurons": 0}, {"reason": NO_SOURCES}, seconds=time.perf_counter() - began)
    weights = replace(model_weights(plan, model)[0], dtype=section.dtype)
    all_prompts = read_prompts(experiment.prompts.at_most(section.limit), experiment.languages)
    prompts = {language: list(group) for language, group in groupby(all_prompts, lambda prompt: prompt.language)}
    check_lengths(
        prompts.values(),
        load_tokenizer(*weights.tokenizer_source),
        # One token less where released puts one before the prompt.
        context_length(load_config(weights.path, weights.revision))
        - section.new_tokens
        - (section.protocol == "released"),
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
    means = activation_metrics(rows, experiment.evaluate.confidence)
    metrics: ActivationsMetrics = {
        "neurons": [list(neuron) for neuron in neurons],
        "new_tokens": section.new_tokens,
        "confidence": experiment.evaluate.confidence,
        "languages": means["languages"],
        "average": means["average"],
    }
    if model != BASE:
        before = read_activations(plan.finished("activations", BASE).rows, list(prompts))
        metrics["change"] = activation_changes(before, rows, experiment.evaluate.confidence)
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
    """Write the rows of every language that has none yet. Ray must be running.

    Args:
        prompts: by language.
        rows: the folder of the rows.
        on_progress: called with the number of finished prompts and the number of all prompts.

    Raises:
        InputError: the model cannot be loaded or does not have a neuron, or its activations are not finite.
        StageError: workers died repeatedly. The same call continues.
    """
    from xgray.distributed.workers import Work, compute_missing

    # Languages with many prompts come first, so that no worker ends with a long unit.
    languages = sorted(prompts, key=lambda language: -len(prompts[language]))
    units = [Work(rows_file(language), len(prompts[language]), (language, prompts[language])) for language in languages]
    arguments, num_workers = (weights, neurons, section, rows), section.execution.num_workers
    computed = compute_missing(ActivationWorker, arguments, units, rows, "activations", num_workers, on_progress)
    return StageResult({"num_prompts": computed.total, "num_reused": computed.reused}, device=computed.device)


class ActivationWorker:
    """Measures activations with one copy of the model."""

    def __init__(self, weights: Weights, neurons: Sequence[Neuron], section: Activations, rows: Folder) -> None:
        from xgray.mechanism.neurons import check_neurons
        from xgray.models.load import load_causal_lm, load_tokenizer

        self.neurons, self.section, self.rows = neurons, section, rows
        self.tokenizer = load_tokenizer(*weights.tokenizer_source)
        self.model = load_causal_lm(weights.path, weights.dtype, weights.revision)
        check_neurons(neurons, self.model, "activations.neurons")

    def work(self, unit: tuple[str, Sequence[Prompt]]) -> str:
        """Measure and write the rows of one language, and return the name of the device."""
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
                protocol=self.section.protocol,
            )
        except InputError as error:
            raise InputError(f"activations: {language}: {error}") from None
        ids = [prompt.prompt_id for prompt in prompts]
        write_activations(self.rows, language, ActivationRows(ids, means, num_tokens))
        return str(self.model.device)
