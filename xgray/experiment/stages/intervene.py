"""The base model's completions while chosen neurons are pushed: a small run of its own inside the run (Figure 2).

    intervene/prompts.parquet ─▶ generate/{setting} ─▶ score/{setting} ─▶ evaluate ─▶ intervene/metrics.json

A setting is one way of pushing; ``base`` is none. All of them come from one engine, and go through the same stages as
the completions of any model, each with a manifest, so that what is done stays done.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from xgray.config import BASE, Generate, Intervene, Neuron
from xgray.experiment.plan import Plan, Planned, SamplingPlan
from xgray.experiment.stages.evaluate import evaluate
from xgray.experiment.stages.sample import generate_and_score, new_prompts
from xgray.experiment.weights import model_weights
from xgray.mechanism.neurons import NO_SOURCES, Edit, actual_sources, check_neurons
from xgray.runs import interrupts
from xgray.runs.manifest import StageFolder, StageResult
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PROMPTS, PromptFile


def run(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Sample, score and evaluate every setting; without neurons to push, say why there are none. Ray must be up.

    Raises:
        InputError: a neuron is outside the model, or a stage that is needed is not finished.
        StageError: actors failed; the same call goes on.
    """
    from xgray.distributed.pipeline import PipelineModel
    from xgray.generate.build import engine_name
    from xgray.models.load import load_skeleton

    began = time.perf_counter()
    section = plan.experiment.intervene
    assert section is not None
    neurons, where = _neurons(plan, section)
    if not neurons:
        one.place.folder.write_json("metrics.json", {"neurons": [], "reason": NO_SOURCES})
        return StageResult({"num_neurons": 0}, {"reason": NO_SOURCES}, seconds=time.perf_counter() - began)
    base = replace(model_weights(plan, BASE)[0], edited=True)
    check_neurons(neurons, load_skeleton(base.path, base.revision), where)
    edits = {BASE: None} | {name: Edit(tuple(neurons), *values) for name, *values in section.settings()}
    inner = _inner(plan, one, section, list(edits))
    if (prompts := new_prompts(inner)) is not None:
        inner.run.write_bytes(PROMPTS, prompts)
    todo = [each for each in (*inner.generate.values(), *inner.score.values()) if each.place.begin(each.payload)]
    shown = _together(on_progress, inner, todo)
    if todo:
        targets = [
            PipelineModel(name, base, None, inner.generate[name].place.rows, inner.score[name].place.rows, edit)
            for name, edit in edits.items()
            if inner.generate[name] in todo or inner.score[name] in todo
        ]
        with interrupts.grace():
            generate_and_score(inner, todo, targets, engine_name(inner.experiment.generate), shown)
    if inner.evaluate.place.begin(inner.evaluate.payload):
        evaluate(inner, shown)
    evaluated = inner.evaluate.place.folder.read_json("metrics.json")
    metrics = {
        "neurons": neurons,
        "decoding": section.generate.model_dump(mode="json"),
        **metrics_by_setting(evaluated, edits),
    }
    one.place.folder.write_json("metrics.json", metrics)
    return _result(inner, metrics, time.perf_counter() - began)


def _neurons(plan: Plan, section: Intervene) -> tuple[list[Neuron], str]:
    """The neurons to push, and where they are listed."""
    if section.neurons is not None:
        return section.neurons, "intervene.neurons"
    vectors = plan.stage("vectors").place.folder
    return actual_sources(vectors), f"{vectors / 'metrics.json'}: sources"


def _inner(plan: Plan, one: Planned, section: Intervene, names: Iterable[str]) -> SamplingPlan:
    """The stages within this one. All that they depend on is in its own payload, so that its fingerprint is theirs."""
    experiment = plan.experiment
    generate = Generate(**section.generate.model_dump(), execution=experiment.generate.execution)
    prompts = experiment.prompts.at_most(section.limit)
    folder, inputs = one.place.folder, {"intervene": one.fingerprint, "prompts": one.payload["inputs"]["prompts"]}

    def planned(stage: str, model: str | None) -> Planned:
        place = StageFolder(folder / stage / model if model else folder / stage, stage, model)
        return Planned(place, {"inputs": inputs, "setting": model})

    return SamplingPlan(
        experiment.model_copy(update={"generate": generate, "prompts": prompts, "variants": []}),
        folder,
        {name: planned("generate", name) for name in names},
        {name: planned("score", name) for name in names},
        planned("evaluate", None),
    )


def _together(on_progress: OnProgress, inner: SamplingPlan, todo: list[Planned]) -> OnProgress:
    """One progress for all settings: the prompts that are scored, then what evaluating says."""
    num_prompts = len(PromptFile(inner.run))
    scored = {each.place.label: (num_prompts * (each not in todo), 0) for each in inner.score.values()}

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        if label in scored:
            scored[label] = done, errors
            counts = [sum(column) for column in zip(*scored.values(), strict=True)]
            on_progress("intervene", counts[0], num_prompts * len(scored), counts[1])
        elif label.startswith("evaluate: "):
            on_progress(f"intervene: {label.removeprefix('evaluate: ')}", done, total, errors)

    return report


def metrics_by_setting(evaluated: Mapping[str, Any], edits: Mapping[str, Edit | None]) -> dict[str, Any]:
    """``evaluate``'s metrics of the settings, with what each setting is, and its comparison with the base beside it."""
    told = dict(evaluated)
    models, comparisons = told.pop("models"), told.pop("comparisons")
    settings = {
        name: {
            "offset": edit.offset if edit else 0.0,
            "multiplier": edit.multiplier if edit else 1.0,
            **models[name],
            "comparison": comparisons.get(name),
        }
        for name, edit in edits.items()
    }
    return {**told, "settings": settings}


def _result(inner: SamplingPlan, metrics: dict[str, Any], seconds: float) -> StageResult:
    made, scored = (
        {name: each.place.manifest() or {} for name, each in stage.items()} for stage in (inner.generate, inner.score)
    )
    names = ("num_prompts", "num_completions", "num_errors")
    counts = {name: sum(one["counts"][name] for one in scored.values()) for name in names}
    counts |= {"num_settings": len(made), "num_neurons": len(metrics["neurons"])}
    counts["num_tokens"] = sum(one["counts"]["num_tokens"] for one in made.values())
    measured: dict[str, Any] = {
        name: {
            "avg_tox": one["average"]["avg_tox"]["value"],
            "perplexity": one["average"]["perplexity"]["value"],
            "generate_seconds": made[name]["seconds"],
        }
        for name, one in metrics["settings"].items()
    }
    return StageResult(counts, measured, made[BASE]["device"], seconds)
