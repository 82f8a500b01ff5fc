"""Stage ``score/{model}``: the scores of a model's completions, ``score/{model}/rows``.

The first scorer runs in one stream with ``generate``: :mod:`xgray.experiment.stages.sample`. Every other one scores the
rows of completions afterwards, into ``score@{scorer}/{model}/rows``, in a stage of its own with manifest, fingerprint
and resume: a scorer that is added to a finished run is the only one to score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xgray.config import BASE, Score
from xgray.config.stages import scoring_stage
from xgray.experiment.plan import Plan, PlannedStage, resolved_score
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.storage.fingerprint import fingerprint


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what a model's scores depend on: its completions, the scorer's files and the section."""
    return _payload(plan, plan.experiment.score, model)


def payload_of_scorer(plan: Plan, scorer: str, model: str | None) -> dict[str, Any]:
    """Return what a model's scores by another scorer than the first depend on.

    The file of its agreement with people is among it, because it decides on the languages that are scored.

    Raises:
        InputError: the file of the agreement is missing or wrong.
    """
    from xgray.score.measured import read_report

    section = plan.experiment.score_section(scorer)
    found = _payload(plan, section, model)
    if section.execution.agreement is not None:
        found["inputs"]["agreement"] = fingerprint(read_report(section.execution.agreement).model_dump(mode="json"))
    return found


def _payload(plan: Plan, section: Score, model: str | None) -> dict[str, Any]:
    from xgray.score.build import scorer_inputs

    completions = plan.stage("generate", model).fingerprint
    return {"inputs": {"completions": completions, **scorer_inputs(section)}, "section": section_payload(section)}


def run(plan: Plan, planned: Sequence[PlannedStage], on_progress: OnProgress) -> list[StageResult]:
    """Score the completions with the scorers that are not the first, one scorer after the other. Ray must be up.

    Raises:
        InputError: completions are not finished, or a scorer cannot be built.
        StageError: actors failed; the same call goes on.
    """
    results: dict[str, StageResult] = {}
    for scorer in dict.fromkeys(stage.stage.scorer for stage in planned):
        results |= _score(plan, scorer, [stage for stage in planned if stage.stage.scorer == scorer], on_progress)
    return [results[stage.label] for stage in planned]


def _score(
    plan: Plan, scorer: str | None, planned: Sequence[PlannedStage], on_progress: OnProgress
) -> dict[str, StageResult]:
    """Score what the stages of one scorer lack, and return their results by label."""
    from xgray.distributed.actors import PipelineSettings
    from xgray.distributed.pipeline import run_pipeline
    from xgray.experiment.stages.sample import pipeline_models
    from xgray.score.store.store import ScoreStore

    name, models = scoring_stage(scorer), [stage.model or BASE for stage in planned]
    for model in models:
        plan.finished("generate", model)
    section = resolved_score(plan.experiment, scorer)
    targets = pipeline_models(plan, None, models, name)
    settings = PipelineSettings(plan.run, None, None, section, plan.experiment.seed, name)
    tallies = run_pipeline(targets, settings, on_progress)
    if section.execution.store:
        ScoreStore(section.execution.store).compact()
    return {stage.label: tallies[name, stage.model or BASE].result(name) for stage in planned}
