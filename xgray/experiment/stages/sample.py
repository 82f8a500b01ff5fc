"""Models sampled, scored and evaluated together: those of an experiment, and those of a stage that edits one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xgray.experiment.checks import found_state
from xgray.experiment.plan import Plan, Planned, SamplingPlan, resolved_score
from xgray.runs.manifest import FolderState
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PROMPTS
from xgray.score.store.store import store_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import EngineName


def new_prompts(plan: SamplingPlan) -> pa.Buffer | None:
    """The content of the plan's prompt file; None where it is there.

    Raises:
        InputError: a prompt is wrong.
    """
    from xgray.data.prompts import read_prompts
    from xgray.runs.prompts import PromptFile, prompt_file

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
        from xgray.score.store.store import ScoreStore

        ScoreStore(store_uri(experiment.score, experiment.runs)).compact()
    for one in todo:
        stage, model = one.place.stage, one.place.model or ""
        one.place.finish(one.payload, tallies[stage, model].result(stage))


def _new_prompts(plan: Plan, asked: list[Planned], force: bool) -> pa.Buffer | None:
    """The content of the run's prompt file; None where it is there or not needed.

    Raises:
        InputError: a prompt is wrong.
    """
    if all(found_state(one, force) is FolderState.FINISHED for one in asked if one.place.stage == "generate"):
        return None
    return new_prompts(plan)


def _targets(plan: Plan, engine: EngineName | None) -> list[Target]:
    """Every model, and the weights that an engine loads for it."""
    from xgray.distributed.cluster import reach
    from xgray.distributed.nodes import room
    from xgray.distributed.pipeline import Target
    from xgray.experiment.weights import model_weights
    from xgray.generate.engine import serves_adapter

    num_gpus = room(reach().could, 0, 1)
    targets = []
    for model in plan.models:
        weights, adapter = model_weights(plan, model, lambda one: serves_adapter(engine, one, num_gpus))
        places = plan.generate[model].place.rows, plan.score[model].place.rows
        targets.append(Target(model, weights, adapter, *places))
    return targets


def _generate_and_score(plan: Plan, todo: list[Planned], on_progress: OnProgress) -> None:
    from xgray.generate.build import engine_name

    for one in todo:
        if one.place.stage == "generate":
            plan.require_model(one.place.model or "")
    imported = not any("engine" in one.payload for one in plan.generate.values())
    engine = None if imported else engine_name(plan.experiment.generate)
    names = {one.place.model for one in todo}
    targets = [target for target in _targets(plan, engine) if target.model in names]
    generate_and_score(plan, todo, targets, engine, on_progress)
