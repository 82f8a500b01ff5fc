"""Stage ``intervene``: the base model's completions while the activations of chosen neurons are changed (Figure 2).

    intervene/prompts.parquet ─▶ generate/{setting} ─▶ score/{setting} ─▶ evaluate ─▶ intervene/metrics.json

A setting is one offset or multiplier; ``base`` changes nothing. The stage's folder is a small run by itself: all
settings are sampled by one engine and pass through the same stages as any model. Each of these stages has a manifest,
so that finished settings stay finished.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from xgray.config import BASE, Generate, Intervene, Neuron
from xgray.config.stages import stage_named
from xgray.evaluate.metrics_file import EvaluateMetrics, InterveneMetrics, SettingMetrics
from xgray.experiment.checks import check_mlps
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.experiment.stages.generate import not_followed
from xgray.experiment.stages.sample import generate_and_score, new_prompts
from xgray.experiment.weights import model_weights
from xgray.mechanism.neurons import NO_SOURCES, Edit, actual_sources, check_neurons
from xgray.runs import interrupts
from xgray.runs.manifest import StageFolder, StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PROMPTS, PromptFile

if TYPE_CHECKING:
    from xgray.generate.engine import Weights


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the settings' completions, scores and metrics depend on."""
    from xgray.data.prompts import prompts_fingerprint
    from xgray.generate.build import engine_name
    from xgray.score.build import scorer_inputs

    experiment, section = plan.experiment, plan.experiment.intervene
    assert section is not None
    inputs = {
        "prompts": prompts_fingerprint(experiment.prompts.at_most(section.limit), experiment.languages),
        **scorer_inputs(experiment.score),
    }
    if section.neurons is None:
        inputs["vectors"] = plan.stage("vectors").fingerprint
    return inside_payload(
        plan,
        section,
        inputs,
        score=section_payload(experiment.score),
        evaluate=section_payload(experiment.evaluate),
        measured_with=plan.stage("evaluate").payload["measured_with"],
        engine=engine_name(experiment.generate),
        seed=experiment.seed,
        **not_followed(experiment, BASE),
    )


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the architecture's MLPs are known and that the model has the listed neurons.

    Raises:
        InputError: they are not, or it does not.
    """
    section = plan.experiment.intervene
    assert section is not None
    check_mlps(plan.experiment, section.neurons, "intervene.neurons")


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Sample, score and evaluate every setting, and write ``metrics.json``. Ray must be running.

    If the stage vectors found no sources, the metrics only say so.

    Raises:
        InputError: a neuron is outside the model, or a stage that this one needs is not finished.
        StageError: actors failed. Results so far are kept: the same call continues.
    """
    from xgray.experiment.stages import evaluate
    from xgray.models.load import load_skeleton

    began = time.perf_counter()
    section = plan.experiment.intervene
    assert section is not None
    neurons, listed_in = _neurons(plan, section)
    if not neurons:
        planned.folder.write_json("metrics.json", {"neurons": [], "reason": NO_SOURCES})
        return StageResult({"num_neurons": 0}, {"reason": NO_SOURCES}, seconds=time.perf_counter() - began)
    weights = replace(model_weights(plan, BASE)[0], edits_neurons=True)
    if section.protocol == "released":
        weights = replace(weights, prefix=_released_prefix(weights))
    check_neurons(neurons, load_skeleton(weights.path, weights.revision), listed_in)
    edits: dict[str, Edit | None] = {BASE: None}
    for name, offset, multiplier in section.settings():
        edits[name] = Edit(tuple(neurons), offset, multiplier)
    inner = _inner_plan(plan, planned, section, list(edits))
    if (prompts := new_prompts(inner)) is not None:
        inner.run.write_bytes(PROMPTS, prompts)
    unfinished = [stage for stage in inner.stages if stage.name != "evaluate" and stage.begin()]
    report = _joint_progress(on_progress, inner, unfinished)
    if unfinished:
        _sample_settings(inner, unfinished, weights, edits, report)
    evaluation = inner.stage("evaluate")
    if evaluation.begin():
        evaluation.finish(evaluate.run(inner, evaluation, report))
    metrics = cast(
        InterveneMetrics,
        {
            "neurons": neurons,
            "decoding": section.generate.model_dump(mode="json"),
            **metrics_by_setting(evaluation.folder.read_mapping("metrics.json"), edits),
        },
    )
    planned.folder.write_json("metrics.json", metrics)
    return _result(inner, metrics, time.perf_counter() - began)


def _neurons(plan: Plan, section: Intervene) -> tuple[list[Neuron], str]:
    """Return the neurons to edit, and where they are listed."""
    if section.neurons is not None:
        return section.neurons, "intervene.neurons"
    vectors = plan.finished("vectors").folder
    return actual_sources(vectors), f"{vectors / 'metrics.json'}: sources"


def _released_prefix(weights: Weights) -> str:
    from xgray.mechanism.activations import released_prefix
    from xgray.models.load import load_config, load_tokenizer

    config = load_config(weights.path, weights.revision)
    return released_prefix(config.model_type, load_tokenizer(weights.path, weights.revision))


def _inner_plan(plan: Plan, planned: PlannedStage, section: Intervene, settings: list[str]) -> Plan:
    """Plan the run inside the stage's folder, with the settings as its models.

    The payload of ``planned`` holds all that the inner stages depend on, so its fingerprint is their input.
    """
    experiment = plan.experiment
    generate = Generate(**section.generate.model_dump(), execution=experiment.generate.execution)
    prompts = experiment.prompts.at_most(section.limit)
    inner = Plan(
        experiment.model_copy(update={"generate": generate, "prompts": prompts, "variants": [], "sweep": None}),
        planned.folder,
        settings,
        [],
    )
    inputs = {"intervene": planned.fingerprint, "prompts": planned.payload["inputs"]["prompts"]}
    for name, setting in [
        *(("generate", setting) for setting in settings),
        *(("score", setting) for setting in settings),
        ("evaluate", None),
    ]:
        folder = inner.run / name / setting if setting else inner.run / name
        payload = {"inputs": inputs, "setting": setting}
        inner.add(PlannedStage(stage_named(name), StageFolder(folder, name, setting), payload))
    return inner


def _sample_settings(
    inner: Plan,
    unfinished: list[PlannedStage],
    weights: Weights,
    edits: Mapping[str, Edit | None],
    on_progress: OnProgress,
) -> None:
    """Sample and score the settings that are not finished, all from one engine."""
    from xgray.distributed.actors import PipelineModel
    from xgray.generate.build import engine_name

    settings = {stage.model for stage in unfinished}
    targets = [
        PipelineModel(
            setting, weights, None, inner.stage("generate", setting).rows, inner.stage("score", setting).rows, edit
        )
        for setting, edit in edits.items()
        if setting in settings
    ]
    engine = engine_name(inner.experiment.generate)
    with interrupts.grace():
        results = generate_and_score(inner, unfinished, targets, engine, on_progress)
    for stage, result in zip(unfinished, results, strict=True):
        stage.finish(result)


def _joint_progress(on_progress: OnProgress, inner: Plan, unfinished: list[PlannedStage]) -> OnProgress:
    """Return a callback that reports one progress for all settings: scored prompts, then the parts of evaluation."""
    num_prompts = len(PromptFile(inner.run))
    scored = {stage.label: (num_prompts * (stage not in unfinished), 0) for stage in inner.by_model("score").values()}

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        if label in scored:
            scored[label] = done, errors
            counts = [sum(column) for column in zip(*scored.values(), strict=True)]
            on_progress("intervene", counts[0], num_prompts * len(scored), counts[1])
        elif label.startswith("evaluate: "):
            on_progress(f"intervene: {label.removeprefix('evaluate: ')}", done, total, errors)

    return report


def metrics_by_setting(evaluated: EvaluateMetrics, edits: Mapping[str, Edit | None]) -> dict[str, Any]:
    """Return the metrics of ``evaluate`` by setting, each with its edit and its comparison with the base model."""
    models, comparisons = evaluated["models"], evaluated["comparisons"]
    common = {name: value for name, value in evaluated.items() if name not in ("models", "comparisons")}
    settings: dict[str, SettingMetrics] = {
        name: {
            "offset": edit.offset if edit else 0.0,
            "multiplier": edit.multiplier if edit else 1.0,
            **models[name],
            "comparison": comparisons.get(name),
        }
        for name, edit in edits.items()
    }
    return {**common, "settings": settings}


def _result(inner: Plan, metrics: InterveneMetrics, seconds: float) -> StageResult:
    """Sum up the manifests of the inner stages, and pick out the averages of each setting."""
    generated, scored = (
        {name: stage.place.manifest() or {} for name, stage in inner.by_model(kind).items()}
        for kind in ("generate", "score")
    )
    names = ("num_prompts", "num_completions", "num_errors")
    counts = {name: sum(manifest["counts"][name] for manifest in scored.values()) for name in names}
    counts |= {"num_settings": len(generated), "num_neurons": len(metrics["neurons"])}
    counts["num_tokens"] = sum(manifest["counts"]["num_tokens"] for manifest in generated.values())
    measured: dict[str, Any] = {
        name: {
            "avg_tox": setting["average"]["avg_tox"]["value"],
            "perplexity": setting["average"]["perplexity"]["value"],
            "generate_seconds": generated[name]["seconds"],
        }
        for name, setting in metrics["settings"].items()
    }
    return StageResult(counts, measured, generated[BASE]["device"], seconds)
