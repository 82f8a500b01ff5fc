"""Perplexities over Ray: one worker for each GPU, or one for each machine without, each with one copy of the model.

A unit of work is one model's completions in one language; its file is written when all of it is measured, so that
what is on disk is never measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from xgray.config import Evaluate, Model
from xgray.distributed.workers import Work, make_missing
from xgray.evaluate.rows import PERPLEXITY, LanguageRows, perplexity_file, read_completions, write_perplexities
from xgray.experiment.plan import SamplingPlan
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.storage.folder import Folder


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
    if section.fluency.kind == "none":
        return StageResult()
    began = time.perf_counter()
    output = run / "evaluate" / PERPLEXITY
    units = [
        Work(perplexity_file(model, language), rows.num_completions, (model, language, rows))
        for model in models
        for language, rows in read_completions(run, model).items()
    ]
    made = make_missing(
        FluencyWorker, (section, base, output), units, output, "evaluate", section.execution.num_workers, on_progress
    )
    return StageResult(
        counts={"num_completions": made.total, "num_reused": made.reused},
        device=made.device,
        seconds=time.perf_counter() - began,
    )


class FluencyWorker:
    """One copy of the measuring model."""

    def __init__(self, section: Evaluate, base: Model, output: Folder) -> None:
        from xgray.evaluate.fluency import load_measuring_model

        self.output = output
        self.section = section
        self.model, self.tokenizer = load_measuring_model(section.fluency.model or base, section.fluency.kind)

    def work(self, unit: tuple[str, str, LanguageRows]) -> str:
        """Measure and write one model's completions in one language; the device."""
        from xgray.evaluate.fluency import perplexities

        model, language, rows = unit
        values = perplexities(
            self.model,
            self.tokenizer,
            rows.prompts,
            rows.completions,
            self.section.fluency,
            self.section.execution.batch_size,
        )
        write_perplexities(self.output, model, language, rows.prompt_ids, values)
        return str(self.model.device)


def evaluate(plan: SamplingPlan, on_progress: OnProgress) -> None:
    """Perplexities and metrics of all models of the plan. Ray must be up."""
    from xgray.evaluate.metrics import evaluate_run

    experiment, section = plan.experiment, plan.experiment.evaluate
    for one in plan.score.values():
        one.require()
    began = time.perf_counter()
    measured = measure_fluency(
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
        seed=experiment.seed,
        on_progress=lambda done, total: on_progress("evaluate: metrics", done, total),
    )
    metrics["unvalidated"] = _unvalidated(plan)
    plan.evaluate.place.folder.write_json("metrics.json", metrics)
    measured.seconds = time.perf_counter() - began
    plan.evaluate.place.finish(plan.evaluate.payload, measured)


def _unvalidated(plan: SamplingPlan) -> list[str]:
    """The languages that the scores' scorer was not validated on; none where scores came from the user's files."""
    told = [(one.place.manifest() or {}).get("measured", {}).get("scorer", {}) for one in plan.score.values()]
    validated = [set(one["validated"]) for one in told if "validated" in one]
    return [code for code in plan.experiment.languages if any(code not in known for known in validated)]
