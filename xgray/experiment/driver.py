"""Running the stages of an experiment that are not done."""

from __future__ import annotations

import contextlib

import yaml

from xgray.experiment.checks import (
    check_capacity,
    check_listed_neurons,
    check_other_stages,
    check_scorer,
    check_stages_exist,
    check_tasks,
    found_state,
    may_replace,
)
from xgray.experiment.plan import STAGES, Plan, Planned
from xgray.experiment.stages.evaluate import evaluate
from xgray.experiment.stages.report import _report
from xgray.experiment.stages.sample import _generate_and_score, _new_prompts
from xgray.experiment.stages.train import _train
from xgray.runs import interrupts
from xgray.runs.attempt_log import attempt
from xgray.runs.lease import Lease
from xgray.runs.manifest import FolderState, StageResult
from xgray.runs.progress import Meter, OnProgress
from xgray.runs.prompts import PROMPTS


def write_resolved(plan: Plan) -> None:
    """``experiment.yaml`` of the run: the file with every default and override in place."""
    text = yaml.safe_dump(plan.experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    plan.run.write_bytes("experiment.yaml", text.encode())


def run_experiment(
    plan: Plan,
    stages: tuple[str, ...] = STAGES,
    force: bool = False,
    address: str | None = None,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> None:
    """Run those of ``stages`` that are not finished, in order; finished ones are passed over.

    Raises:
        BusyError: another driver is at work in the run's folder.
        ConflictError: a stage's folder holds results of another configuration, and ``force`` is off or the stage is
            not asked for.
        InputError: a stage that is needed but not asked for is not finished, or the experiment does not have one that
            is asked for by its name.
        StageError: a stage failed; the same call goes on where it stopped.
    """
    if stages != STAGES:
        check_stages_exist(plan, stages)
    asked = [one for one in plan.stages() if one.place.stage in stages]
    # A finished run is left as it is, lease and all.
    if all(found_state(one, force) is FolderState.FINISHED for one in asked):
        return
    meter = Meter()

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        meter(label, done, total, errors)
        on_progress(label, done, total, errors)

    check_other_stages(plan, asked, force)
    check_listed_neurons(plan, asked, force)
    check_tasks(plan, asked, force)
    with Lease(plan.run, meter.progress), interrupts.interruptible():
        check_scorer(plan, asked, force)
        prompts = _new_prompts(plan, asked, force)
        # `begin` with force deletes old results.
        todo = [one for one in asked if one.place.begin(one.payload, may_replace(one, force))]
        write_resolved(plan)
        if prompts is not None:
            plan.run.write_bytes(PROMPTS, prompts)
            del prompts
        _run_stages(plan, todo, address, report, meter)


def _run_stages(plan: Plan, todo: list[Planned], address: str | None, on_progress: OnProgress, meter: Meter) -> None:
    training = [one for one in todo if one.place.stage == "train"]
    sampling = [one for one in todo if one.place.stage in ("generate", "score")]
    shown = on_progress
    with contextlib.ExitStack() as stack:
        inside = [one for one in plan.mechanism if one in todo]
        if training or sampling or plan.evaluate in todo or inside:
            from xgray.distributed.cluster import check_shared, connect

            stack.enter_context(connect(address))
            interrupts.listen()  # Ray has taken SIGTERM
            check_shared(plan.run)
            shown = _shown(plan.experiment.name, on_progress)
            check_capacity(plan, todo)
        for one in training:
            with attempt([one.place], meter):
                _train(plan, one, shown)
        if sampling:
            with attempt([one.place for one in sampling], meter), interrupts.grace():
                _generate_and_score(plan, sampling, shown)
        if plan.evaluate in todo:
            with attempt([plan.evaluate.place], meter):
                evaluate(plan, shown)
        for one in inside:
            with attempt([one.place], meter):
                one.place.finish(one.payload, run_mechanism(plan, one, shown))
    if plan.report in todo:
        with attempt([plan.report.place], meter):
            _report(plan, on_progress)


def _shown(run: str, on_progress: OnProgress) -> OnProgress:
    """As ``on_progress``, and for Prometheus."""
    from xgray.distributed.metrics import show_progress

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        on_progress(label, done, total, errors)
        show_progress(run, label, done, total)

    return report


def run_mechanism(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Run one of ``plan.mechanism``; what its files already hold is not made again. Ray must be up.

    Raises:
        InputError: its inputs are wrong, or the stages before it are not finished.
        StageError: workers died; the same call goes on.
    """
    from xgray.experiment.stages import activations, capability, intervene, probe, retrieve, transfer, vectors

    stages = {
        "probe": probe.run,
        "vectors": vectors.run,
        "activations": activations.run,
        "intervene": intervene.run,
        "retrieve": retrieve.run,
        "transfer": transfer.run,
        "capability": capability.run,
    }
    return stages[one.place.stage](plan, one, on_progress)
