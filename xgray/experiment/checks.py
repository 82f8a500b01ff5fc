"""Checks that run before anything is spent: refuse what cannot succeed.

A stage's own checks stand in its file, as ``check(plan, planned)``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from xgray.config import Experiment, Model, Neuron
from xgray.config.stages import scoring_stage, stage_named, stage_names
from xgray.errors import InputError
from xgray.experiment.plan import Plan, PlannedStage, resolved_score, stage_module
from xgray.runs.manifest import FolderState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from xgray.score.scorer import ScorerId


def unfinished(stages: Sequence[PlannedStage], force: bool) -> list[PlannedStage]:
    """Return the stages that are not finished as planned.

    Raises:
        ConflictError: a folder holds results of another configuration, and ``force`` is off.
    """
    return [stage for stage in stages if stage.state(force) is not FolderState.FINISHED]


def check_stages_exist(plan: Plan, names: Collection[str]) -> None:
    """Refuse a stage that the experiment does not have, which would otherwise pass as finished.

    Raises:
        InputError: names the section that is missing.
    """
    planned = {stage.name for stage in plan.stages}
    for name in names:
        stage = stage_named(name)
        if stage.compares_scorers and name not in planned:
            raise InputError(
                f"{name}: the experiment has a single scorer; list several in score, or name them: "
                "--score NAME --score NAME"
            )
        if stage.section is None or name in planned:
            continue
        if getattr(plan.experiment, stage.section) is not None:
            raise InputError(
                f"{name}: the experiment has no variant whose change could be compared; "
                "add one: variants: [{name: dpo}]"
            )
        raise InputError(
            f"{name}: the experiment has no section {stage.section}; add it: '{stage.section}: {{}}' takes the defaults"
        )


def check_other_stages(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Refuse to run when stages outside ``selected`` contradict the plan or are missing as inputs.

    A stage that is made from one that is about to run again is out of date, which is no contradiction.

    Raises:
        ConflictError: a stage outside holds results of another configuration.
        InputError: a stage outside is needed and not finished.
    """
    outdated: list[PlannedStage] = []
    for stage in plan.stages:
        needed = plan.needs(stage)
        if stage in selected:
            state = stage.state(force)
            if state in (FolderState.EMPTY, FolderState.CONFLICT):
                outdated.append(stage)
            if state is not FolderState.FINISHED:
                for source in needed:
                    if source not in selected:
                        source.state()  # raises with the fields that changed
                        source.require()
        elif any(source in outdated for source in needed):
            outdated.append(stage)
        else:
            stage.state()


def check_stages(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Call the checks of the stages' own files.

    Raises:
        InputError: a stage cannot succeed.
    """
    for stage in unfinished(selected, force):
        check = getattr(stage_module(stage.stage), "check", None)
        if check is not None:
            check(plan, stage)


def check_scorer(plan: Plan, selected: Sequence[PlannedStage], force: bool) -> None:
    """Build each scorer that has something to do once, and refuse languages that it cannot score.

    Building it refuses a missing key and the like, and fits a local scorer once for all workers. The first scorer must
    know all languages, each other one at least one of them.

    Raises:
        InputError: a scorer cannot be built, does not know a language, or is the same as another one.
    """
    to_do = [stage for stage in unfinished(selected, force) if "scorer" in stage.stage.uses]
    if not to_do:
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import ScorerId, check_languages
    from xgray.score.validated_only import scored_languages

    experiment = plan.experiment
    found: dict[ScorerId, str] = {}
    for name, planned in zip(experiment.scorer_names, _first_of_scorers(plan), strict=True):
        is_first = name == experiment.scorer_names[0]
        section = resolved_score(experiment, name)
        if any(stage.stage.scorer == (None if is_first else name) for stage in to_do):
            scorer = build_scorer(section)
            if is_first:
                # A language without a calibration cannot be scored, even unvalidated.
                unvalidated = section.unvalidated_languages and section.calibration is None
                check_languages(scorer, experiment.languages, unvalidated)
            elif not scored_languages(scorer, section, experiment.languages):
                raise InputError(
                    f"score: {name} was validated on none of the languages of the prompts, "
                    f"{', '.join(experiment.languages)} (it was on: {', '.join(scorer.validated) or 'none'}). Leave it "
                    "out, or set its unvalidated_languages: true, and the report will mark them"
                )
            identity = ScorerId.of(scorer)
        elif (recorded := _recorded_id(planned)) is not None:
            identity = recorded
        else:
            continue
        if identity in found:
            raise InputError(
                f"score: {found[identity]} and {name} are the same scorer: {identity.name}, version "
                f"{identity.version}. It agrees with itself; leave one of them out"
            )
        found[identity] = name


def _first_of_scorers(plan: Plan) -> list[PlannedStage | None]:
    """Return, for each scorer, the stage in which it scores the first model."""
    names: list[str | None] = [None, *plan.experiment.scorer_names[1:]]
    return [plan.find(scoring_stage(name), plan.models[0]) for name in names]


def _recorded_id(planned: PlannedStage | None) -> ScorerId | None:
    """Return which scorer a finished stage was scored with; None where it does not say."""
    from xgray.score.scorer import ScorerId

    manifest = planned.place.manifest() if planned else None
    scorer = manifest["measured"].get("scorer", {}) if manifest else {}
    return ScorerId(scorer["scorer"], scorer["version"]) if {"scorer", "version"} <= scorer.keys() else None


def check_mlps(experiment: Experiment, neurons: Sequence[Neuron] | None = None, field: str = "") -> None:
    """Refuse MLPs of an unknown kind, and listed neurons that the base model does not have.

    Args:
        field: the field of the experiment file that lists the neurons, for the message.

    Raises:
        InputError: names the architecture or the neurons.
    """
    from xgray.mechanism.neurons import check_neurons, down_projections

    skeleton = _skeleton(experiment.model)
    down_projections(skeleton)
    if neurons:
        check_neurons(neurons, skeleton, field)


@lru_cache(maxsize=1)
def _skeleton(model: Model) -> PreTrainedModel:
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve

    return load_skeleton(resolve(model), model.revision)


def check_capacity(plan: Plan, planned: Sequence[PlannedStage]) -> None:
    """Refuse what this cluster can never hold, before the first stage takes its hours.

    Raises:
        InputError: names what is too large, and what the cluster has.
    """
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.placement import place_engines, place_training, place_workers
    from xgray.train.feasible import check_feasible

    experiment, cluster = plan.experiment, cluster_capacity()
    for stage in planned:
        uses = stage.stage.uses
        if "trainer" in uses:
            section = experiment.train_section(experiment.variant(stage.model or ""))
            check_feasible(section, place_training(cluster, section.execution)[0])
        if "workers" in uses:
            settings = getattr(experiment, stage.stage.section or stage.name)
            if settings is not experiment.evaluate or experiment.evaluate.fluency.kind != "none":
                place_workers(cluster, stage.name, settings.execution.num_workers)
    if any("engine" in stage.stage.uses for stage in planned):
        place_engines(cluster, experiment.generate, experiment.score)


def selected_stages(plan: Plan, names: Collection[str] | None) -> list[PlannedStage]:
    """Return the planned stages of these names, all of them for None, in the order in which they run."""
    names = stage_names() if names is None else names
    return [stage for stage in plan.stages if stage.stage.command in names]
