"""Stage ``evaluate``: perplexities; metrics of toxicity, fluency and diversity with intervals; language consistency.

    score/{model}/rows, generate/{model}/rows ─▶ evaluate/perplexity/*.parquet ─▶ evaluate/metrics.json

Perplexities are measured by workers that each hold one copy of the measuring model. A unit of work is one model's
completions in one language; its file is written when all of it is measured, so that nothing is measured twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from xgray.config import Evaluate, Model
from xgray.evaluate.rows import PERPLEXITY, LanguageRows, perplexity_file, read_completions, write_perplexities
from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.storage.folder import Folder


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the metrics depend on: all models' scores, the measuring models, the section and the seed."""
    from xgray.models.revisions import measuring_fingerprints

    experiment = plan.experiment
    points = experiment.sweep_points()
    # A run without a sweep keeps the fingerprint that it had before there were any.
    sweep = {"sweep": {name: asdict(point) for name, point in points.items()}} if points else {}
    return {
        "inputs": {name: stage.fingerprint for name, stage in plan.by_model("score").items()},
        "section": section_payload(experiment.evaluate),
        "base_model": experiment.model.model_dump(mode="json"),
        "measured_with": measuring_fingerprints(experiment, plan.imported is None),
        "seed": experiment.seed,
        **sweep,
    }


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Measure the perplexities that are missing, and write ``metrics.json`` of all models. Ray must be up.

    Raises:
        InputError: a model's scores are not finished, or the measuring model cannot be loaded.
        StageError: workers died; the same call goes on.
    """
    from xgray.evaluate.consistency_metrics import language_consistency
    from xgray.evaluate.metrics import evaluate_run

    experiment, section = plan.experiment, plan.experiment.evaluate
    points = experiment.sweep_points()
    for stage in plan.by_model("score").values():
        stage.require()
    began = time.perf_counter()
    result = measure_fluency(
        plan.run,
        plan.models,
        section,
        experiment.model,
        lambda done, total: on_progress("evaluate: fluency", done, total),
    )
    metrics = evaluate_run(
        plan.run,
        plan.models,
        section,
        experiment.model,
        attribute=experiment.score.attributes[0],
        sweep=points,
        on_progress=lambda done, total: on_progress("evaluate: metrics", done, total),
    )
    metrics["unvalidated"] = _unvalidated_languages(plan)
    metrics["consistency"] = language_consistency(
        plan.run,
        plan.models,
        section,
        attribute=experiment.score.attributes[0],
        sweep=points,
        on_progress=lambda done, total: on_progress("evaluate: languages", done, total),
    )
    planned.folder.write_json("metrics.json", metrics)
    result.seconds = time.perf_counter() - began
    return result


def _unvalidated_languages(plan: Plan) -> list[str]:
    """Return the languages that the scorer was not validated on; none where scores came from the user's files."""
    scorers = [
        (stage.place.manifest() or {}).get("measured", {}).get("scorer", {})
        for stage in plan.by_model("score").values()
    ]
    validated = [set(scorer["validated"]) for scorer in scorers if "validated" in scorer]
    return [language for language in plan.experiment.languages if any(language not in known for known in validated)]


def measure_fluency(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    base: Model,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageResult:
    """Write ``evaluate/perplexity/{model}.{language}.parquet`` for all completions of ``models``. Ray must be up.

    Args:
        base: the experiment's base model, which measures where the section names no other.
        on_progress: called with how many completions are measured, and how many there are.

    Raises:
        InputError: there are no completions, or the measuring model cannot be loaded or does not fit them.
        StageError: workers died again and again; the same call goes on where it stopped.
    """
    from xgray.distributed.workers import Work, compute_missing

    if section.fluency.kind == "none":
        return StageResult()
    began = time.perf_counter()
    output = run / "evaluate" / PERPLEXITY
    units = [
        Work(perplexity_file(model, language), rows.num_completions, (model, language, rows))
        for model in models
        for language, rows in read_completions(run, model).items()
    ]
    computed = compute_missing(
        FluencyWorker, (section, base, output), units, output, "evaluate", section.execution.num_workers, on_progress
    )
    return StageResult(
        counts={"num_completions": computed.total, "num_reused": computed.reused},
        device=computed.device,
        seconds=time.perf_counter() - began,
    )


class FluencyWorker:
    """Measures perplexities with one copy of the measuring model."""

    def __init__(self, section: Evaluate, base: Model, output: Folder) -> None:
        from xgray.evaluate.fluency import load_measuring_model

        self.output = output
        self.section = section
        self.model, self.tokenizer = load_measuring_model(section.fluency.model or base, section.fluency.kind)

    def work(self, unit: tuple[str, str, LanguageRows]) -> str:
        """Measure and write one model's completions in one language, and return the name of the device."""
        from xgray.evaluate.fluency import perplexities

        model, language, rows = unit
        values = perplexities(
            self.model,
            self.tokenizer,
            rows.prompts,
            rows.completions,
            self.section.fluency,
            self.section.execution.batch_tokens,
        )
        write_perplexities(self.output, model, language, rows.prompt_ids, values)
        return str(self.model.device)
