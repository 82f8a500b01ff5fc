"""Models sampled, scored and evaluated together: those of an experiment, and those of a stage that edits one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xgray.meter import OnProgress
from xgray.plan import Planned, SamplingPlan, resolved_score, store_of
from xgray.prompt_file import PROMPTS

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import EngineName


def new_prompts(plan: SamplingPlan) -> pa.Buffer | None:
    """The content of the plan's prompt file; None where it is there.

    Raises:
        InputError: a prompt is wrong.
    """
    from xgray.data.rtp_lx import read_prompts
    from xgray.prompt_file import PromptFile, prompt_file

    (wanted,) = {one.payload["inputs"]["prompts"] for one in plan.generate.values()}
    if plan.run.exists(PROMPTS) and PromptFile(plan.run).fingerprint == wanted:
        return None
    return prompt_file(read_prompts(plan.experiment.prompts, plan.experiment.languages), wanted)


def generate_and_score(
    plan: SamplingPlan,
    todo: list[Planned],
    targets: Sequence[Target],
    engine: EngineName | None,
    on_progress: OnProgress,
) -> None:
    """Both stages of all models in one stream, so that a scorer works while the engine goes on. Ray must be up.

    Args:
        todo: those of the plan's ``generate`` and ``score`` that are not finished.
        targets: the models that these are of.
        engine: what samples; None where nothing is sampled.
    """
    from xgray.distributed.pipeline import run_pipeline

    experiment = plan.experiment
    sampled = [one for one in todo if one.place.stage == "generate"]
    scored = [one for one in todo if one.place.stage == "score"]
    for one in scored:
        made = plan.generate[one.place.model or ""]
        if made not in sampled:
            made.require()
    tallies = run_pipeline(
        targets,
        plan.run,
        engine,
        experiment.generate if sampled else None,
        resolved_score(experiment) if scored else None,
        experiment.seed,
        on_progress,
    )
    if scored:
        from xgray.score.store import ScoreStore

        ScoreStore(store_of(experiment.score, experiment.runs)).compact()
    for one in todo:
        stage, model = one.place.stage, one.place.model or ""
        one.place.finish(one.payload, tallies[stage, model].result(stage))


def evaluate(plan: SamplingPlan, on_progress: OnProgress) -> None:
    """Perplexities and metrics of all models of the plan. Ray must be up."""
    from xgray.distributed.fluency import measure_fluency
    from xgray.evaluate.stage import evaluate_run

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
