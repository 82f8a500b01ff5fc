"""The stage ``activations`` of one model: from prompts to ``rows/{language}.parquet`` and ``metrics.json``.

A tuned model's metrics hold its change against the base model, which is measured first.
"""

from __future__ import annotations

import time
from itertools import groupby

from xgray.config import BASE
from xgray.data.rtp_lx import read_prompts
from xgray.distributed.activations import collect_activations
from xgray.mechanism.activation_rows import activation_changes, activation_metrics, read_activations
from xgray.mechanism.neurons import NO_SOURCES, actual_sources
from xgray.meter import OnProgress
from xgray.model_weights import model_weights
from xgray.models import check_lengths, context_length, load_config, load_tokenizer
from xgray.plan import Plan, Planned
from xgray.runs import StageResult


def run(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Measure what is not measured yet, and write the metrics: without neurons, why there are none. Ray must be up.

    Raises:
        InputError: prompts do not fit, or a stage that is needed is not finished.
        StageError: workers died; the same call goes on.
    """
    began = time.perf_counter()
    experiment, section, model = plan.experiment, plan.experiment.activations, one.place.model or BASE
    assert section is not None
    plan.require_model(model)
    neurons = section.neurons or actual_sources(plan.stage("vectors").place.folder)
    if not neurons:
        one.place.folder.write_json("metrics.json", {"neurons": [], "reason": NO_SOURCES})
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
        one.place.rows,
        lambda done, total: on_progress(one.place.label, done, total),
    )
    rows = read_activations(one.place.rows, list(prompts))
    drawn = (experiment.evaluate.confidence, experiment.evaluate.resamples, experiment.seed)
    metrics = {
        "neurons": neurons,
        "new_tokens": section.new_tokens,
        "confidence": experiment.evaluate.confidence,
        **activation_metrics(rows, *drawn),
    }
    if model != BASE:
        before = read_activations(plan.stage("activations", BASE).place.rows, list(prompts))
        metrics["change"] = activation_changes(before, rows, *drawn)
    one.place.folder.write_json("metrics.json", metrics)
    result.counts["num_tokens"] = metrics["average"]["num_tokens"]
    result.measured["mean"] = metrics["average"]["mean"]["value"]
    result.seconds = time.perf_counter() - began
    return result
