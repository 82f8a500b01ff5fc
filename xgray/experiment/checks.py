"""Checks that run before anything is spent: refuse what cannot succeed.

A stage's own checks stand in its file, as ``check(plan, planned)``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from xgray.config import Experiment, Model, Neuron
from xgray.config.stages import stage_named, stage_names
from xgray.errors import InputError
from xgray.experiment.plan import Plan, PlannedStage, resolved_score, stage_module
from xgray.runs.manifest import FolderState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    A stage that is made from one that is about to run again is out of date, which is no contradiction. Nor are, for a
    report alone, results of an earlier version of the code.

    Raises:
        ConflictError: a stage outside holds results of another configuration.
        InputError: a stage outside is needed and not finished.
    """
    outdated: list[PlannedStage] = []
    is_report = [stage.name for stage in selected] == ["report"]
    for stage in plan.stages:
        if is_report and plan.is_of_earlier_version(stage):
            continue
        needed = [source for source in plan.needs(stage) if not (is_report and plan.is_of_earlier_version(source))]
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
    """Build the scorer once, and refuse languages that it cannot score.

    Building it refuses a missing key and the like, and fits a local scorer once for all workers.

    Raises:
        InputError: the scorer cannot be built, or does not know a language.
    """
    if not any("scorer" in stage.stage.uses for stage in unfinished(selected, force)):
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import check_languages

    section = resolved_score(plan.experiment)
    # A language without a calibration cannot be scored, even unvalidated.
    unvalidated = section.unvalidated_languages and section.calibration is None
    check_languages(build_scorer(section), plan.experiment.languages, unvalidated)


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
    return [stage for stage in plan.stages if stage.name in names]
