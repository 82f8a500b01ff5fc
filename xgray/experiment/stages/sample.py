"""Run the stages ``generate/{model}`` and ``score/{model}``: sample completions of the prompts, and score them.

    prompts.parquet ─▶ generate/{model}/rows ─▶ score/{model}/rows

Both stages of all models run in one stream, so that the scorer works while the engines sample. An intervention samples
and scores its settings through the same functions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import BASE
from xgray.experiment.plan import Plan, PlannedStage, resolved_score
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PROMPTS

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.distributed.actors import PipelineModel
    from xgray.generate.engine import EngineName


def run(plan: Plan, planned: Sequence[PlannedStage], on_progress: OnProgress) -> list[StageResult]:
    """Sample and score what the planned stages of all models lack.

    Raises:
        InputError: a training or the completions that a stage needs are not finished.
        StageError: actors failed; the same call goes on.
    """
    from xgray.generate.build import engine_name

    for stage in planned:
        if stage.name == "generate":
            plan.require_model(stage.model or BASE)
    samples = any(stage.name == "generate" for stage in planned)
    engine = engine_name(plan.experiment.generate) if samples else None
    targets = pipeline_models(plan, engine, {stage.model for stage in planned})
    return generate_and_score(plan, planned, targets, engine, on_progress)


def pipeline_models(
    plan: Plan, engine: EngineName | None, models: Collection[str | None], scoring: str = "score"
) -> list[PipelineModel]:
    """Return each of the models with the weights that an engine loads for it, and the folders of its rows.

    Args:
        engine: what samples, None where nothing is sampled; an adapter that it cannot apply is merged here.
        scoring: the stage that scores, which has the folder of the scores.
    """
    from xgray.distributed.actors import PipelineModel
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.nodes import engines_use_gpu
    from xgray.experiment.weights import model_weights
    from xgray.generate.engine import serves_adapter

    base, on_gpu = plan.experiment.model, engines_use_gpu(plan.experiment.generate, cluster_capacity().has_gpu)
    targets = []
    for model in plan.models:
        if model not in models:
            continue
        weights, adapter = model_weights(plan, model, lambda path: serves_adapter(engine, path, base, on_gpu))
        targets.append(
            PipelineModel(model, weights, adapter, plan.stage("generate", model).rows, plan.stage(scoring, model).rows)
        )
    return targets


def new_prompts(plan: Plan) -> pa.Buffer | None:
    """Return the content of the plan's prompt file, or None where the run holds it already.

    Raises:
        InputError: a prompt is wrong.
    """
    from xgray.data.prompts import read_prompts
    from xgray.runs.prompts import PromptFile, encode_prompts

    (fingerprint,) = {stage.payload["inputs"]["prompts"] for stage in plan.by_model("generate").values()}
    if plan.run.exists(PROMPTS) and PromptFile(plan.run).fingerprint == fingerprint:
        return None
    return encode_prompts(read_prompts(plan.experiment.prompts, plan.experiment.languages), fingerprint)


def generate_and_score(
    plan: Plan,
    planned: Sequence[PlannedStage],
    targets: Sequence[PipelineModel],
    engine: EngineName | None,
    on_progress: OnProgress,
) -> list[StageResult]:
    """Run unfinished ``generate`` and ``score`` stages in one stream, and return their results. Ray must be up.

    Args:
        planned: the stages that are not finished.
        targets: the models that these stages belong to.
        engine: what samples; None where nothing is sampled.
    """
    from xgray.distributed.actors import PipelineSettings
    from xgray.distributed.pipeline import run_pipeline
    from xgray.score.store.store import ScoreStore

    experiment = plan.experiment
    sampled = {stage.model for stage in planned if stage.name == "generate"}
    scored = {stage.model for stage in planned if stage.name == "score"}
    for model in scored - sampled:
        plan.finished("generate", model)
    section = resolved_score(experiment)
    settings = PipelineSettings(
        plan.run,
        engine,
        experiment.generate if sampled else None,
        section if scored else None,
        experiment.seed,
    )
    tallies = run_pipeline(targets, settings, on_progress)
    if scored and section.execution.store:
        ScoreStore(section.execution.store).compact()
    results = [tallies[stage.name, stage.model or BASE].result(stage.name) for stage in planned]
    facts = _sampling_facts(targets) if sampled and engine not in (None, "dummy") else {}
    for stage, result in zip(planned, results, strict=True):
        if stage.name == "generate" and stage.model in facts:
            result.measured["checkpoint"] = facts[stage.model]
    return results


def _sampling_facts(targets: Sequence[PipelineModel]) -> dict[str, dict[str, Any]]:
    """Return what each model's checkpoint brings to its texts: their ends, their beginnings, what is not followed."""
    from xgray.models.check import sampling_facts
    from xgray.models.load import load_tokenizer

    facts = {}
    for target in targets:
        weights = target.weights
        path, revision = weights.tokenizer_source
        facts[target.model] = sampling_facts(weights.path, weights.revision, load_tokenizer(path, revision))
        if weights.tokenizer is not None:
            facts[target.model]["tokenizer"] = "the base model's; the checkpoint has none"
    return facts
