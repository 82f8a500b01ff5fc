"""Checks made before a run spends anything: refuse what cannot succeed."""

from __future__ import annotations

from xgray.config import MECHANISM
from xgray.errors import InputError
from xgray.experiment.plan import Plan, Planned, resolved_score
from xgray.runs.manifest import FolderState

SAMPLED, SCORED = ("generate", "intervene"), ("score", "intervene")
"""The stages that need an engine, and those that need a scorer."""
SPREAD = ("evaluate", "probe", "vectors", "activations", "retrieve", "capability")
"""The stages of workers that each hold a copy of a model: sections with ``execution.num_workers``."""
OF_MLPS = ("probe", "vectors", "activations", "intervene")
"""The stages that must know where a model's MLPs are."""


def may_replace(one: Planned, force: bool) -> bool:
    """Whether other results may be replaced. A report may: it is drawn in seconds from files that stay."""
    return force or one.place.stage == "report"


def found_state(one: Planned, force: bool) -> FolderState:
    return one.place.state(one.payload, may_replace(one, force))


def check_stages_exist(plan: Plan, stages: tuple[str, ...]) -> None:
    """Refuse a stage that the experiment does not have, which would else pass for one that is finished."""
    there = {one.place.stage for one in plan.stages()}
    for stage in (one for one in stages if one in MECHANISM and one not in there):
        if stage == "transfer" and plan.experiment.retrieve:
            raise InputError(
                "transfer: the experiment has no variant whose change could be set against retrieval; "
                "add one: variants: [{name: dpo}]"
            )
        section = "retrieve" if stage == "transfer" else stage
        raise InputError(
            f"{stage}: the experiment has no section {section}; add it: '{section}: {{}}' takes the defaults"
        )


def check_other_stages(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse what stages that are not asked for do not fit, or are missing for, while the run is as it was."""
    anew: list[Planned] = []
    for one in plan.stages():
        needed = plan.needs(one)
        if one in asked:
            found = found_state(one, force)
            if found in (FolderState.EMPTY, FolderState.CONFLICT):
                anew.append(one)
            for before in needed:
                if found is not FolderState.FINISHED and before not in asked:
                    before.place.state(before.payload)  # says what has changed
                    before.require()
        elif any(before in anew for before in needed):
            anew.append(one)  # out of date, which is no contradiction
        else:
            found_state(one, force=False)


def check_scorer(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse what no scorer can do before anything is spent or marked as begun."""
    if all(found_state(one, force) is FolderState.FINISHED for one in asked if one.place.stage in SCORED):
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import check_languages

    # Refuses a missing key and the like, and fits a local scorer once for all workers.
    section = resolved_score(plan.experiment)
    # A language without a calibration cannot be scored, even unvalidated.
    unvalidated = section.unvalidated_languages and section.calibration is None
    check_languages(build_scorer(section), plan.experiment.languages, unvalidated)


def check_tasks(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse tasks that the harness does not know before anything is spent or marked as begun."""
    section = plan.experiment.capability
    todo = [
        one for one in asked if one.place.stage == "capability" and found_state(one, force) is not FolderState.FINISHED
    ]
    if section and todo:
        from xgray.evaluate.harness import find_tasks

        find_tasks(section.tasks)


def check_listed_neurons(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse MLPs of an unknown kind, and listed neurons that the model does not have, before anything is spent."""
    todo = {
        one.place.stage
        for one in asked
        if one.place.stage in OF_MLPS and found_state(one, force) is not FolderState.FINISHED
    }
    if not todo:
        return
    from xgray.mechanism.neurons import check_neurons, down_projections
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve

    experiment = plan.experiment
    skeleton = load_skeleton(resolve(experiment.model), experiment.model.revision)
    down_projections(skeleton)
    if experiment.vectors and "vectors" in todo:
        check_neurons(experiment.vectors.given, skeleton, "vectors.given")
    sections = {"activations": experiment.activations, "intervene": experiment.intervene}
    for name, section in sections.items():
        if section and section.neurons and name in todo:
            check_neurons(section.neurons, skeleton, f"{name}.neurons")


def check_capacity(plan: Plan, todo: list[Planned]) -> None:
    """Refuse what this cluster can never hold before the first stage takes its hours."""
    from xgray.distributed.cluster import reach
    from xgray.distributed.placement import place_engines, place_training, place_workers
    from xgray.train.feasible import check_feasible

    experiment, cluster = plan.experiment, reach()
    for one in todo:
        if one.place.stage == "train":
            trained = experiment.train_section(experiment.variant(one.place.model or ""))
            check_feasible(trained, place_training(cluster, trained.execution)[0])
        elif one.place.stage in SPREAD:
            if one.place.stage == "evaluate" and experiment.evaluate.fluency.kind == "none":
                continue
            section = getattr(experiment, one.place.stage)
            place_workers(cluster, one.place.stage, section.execution.num_workers)
    if any(one.place.stage in SAMPLED for one in todo):
        place_engines(cluster, experiment.generate, experiment.score)
