"""Run the stages of an experiment that are not finished, in order, with one driver at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from importlib import import_module

import yaml

from xgray.errors import StageError, XgrayError
from xgray.experiment.checks import (
    check_capacity,
    check_models,
    check_other_stages,
    check_rows,
    check_scorer,
    check_stages,
    check_stages_exist,
    selected_stages,
    unfinished,
)
from xgray.experiment.plan import Plan, PlannedStage, stage_module
from xgray.experiment.stages import train
from xgray.runs import interrupts
from xgray.runs.attempt_log import log_attempt
from xgray.runs.lease import Lease
from xgray.runs.manifest import LOGS, StageResult
from xgray.runs.progress import Meter, OnProgress
from xgray.runs.prompts import PROMPTS


def write_resolved(plan: Plan) -> None:
    """Write ``experiment.yaml`` into the run directory, with every default and override filled in."""
    text = yaml.safe_dump(plan.experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    plan.run.write_bytes("experiment.yaml", text.encode())


def run_experiment(
    plan: Plan,
    names: Collection[str] | None = None,
    force: bool = False,
    address: str | None = None,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> None:
    """Run the stages that are not finished, in order; finished ones are passed over.

    Args:
        names: the stages to run; all by default.
        force: whether results of another configuration may be replaced.
        address: the Ray cluster to join; by default ``RAY_ADDRESS``, or a local one.

    Raises:
        BusyError: another driver is at work in the run directory.
        ConflictError: a stage's folder holds results of another configuration, and ``force`` is off or the stage is
            not among ``names``.
        InputError: a stage that is needed is neither finished nor among ``names``, or the experiment does not have
            one of ``names``.
        StageError: a stage failed; the same call resumes it.
    """
    if names is not None:
        check_stages_exist(plan, names)
    selected = selected_stages(plan, names)
    if not unfinished(selected, force):
        return  # A finished run is left as it is, lease and all.
    meter = Meter()

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        meter(label, done, total, errors)
        on_progress(label, done, total, errors)

    check_other_stages(plan, selected, force)
    check_rows(plan, selected, force)
    check_stages(plan, selected, force)
    with Lease(plan.run, meter.progress), interrupts.interruptible():
        check_scorer(plan, selected, force)
        planned = unfinished(selected, force)
        prompts = None
        if any(stage.name == "generate" for stage in planned):
            from xgray.experiment.stages.sample import new_prompts

            prompts = new_prompts(plan)  # refuses wrong prompts before the cluster is started
        check_models(plan, selected, force)  # last of the checks, as it takes seconds

        def begin() -> None:
            nonlocal prompts
            for stage in planned:
                stage.begin(force)
            write_resolved(plan)
            if prompts is not None:
                plan.run.write_bytes(PROMPTS, prompts)
                prompts = None  # it may be large

        _run_stages(plan, planned, begin, address, report, meter)


def _run_stages(
    plan: Plan,
    planned: Sequence[PlannedStage],
    begin: Callable[[], None],
    address: str | None,
    on_progress: OnProgress,
    meter: Meter,
) -> None:
    """Run the stages; ``begin`` puts old results away, and is called once a cluster with room for the stages is up."""
    last = max((index for index, stage in enumerate(planned) if stage.stage.uses), default=-1)
    on_cluster, afterwards = planned[: last + 1], planned[last + 1 :]
    if on_cluster:
        with _cluster(plan, on_cluster, address, on_progress):
            begin()
            _run_groups(plan, on_cluster, _exported(plan.experiment.name, on_progress), meter)
    else:
        begin()
    _run_groups(plan, afterwards, on_progress, meter)  # the report, for one, needs no cluster


def _run_groups(plan: Plan, planned: Sequence[PlannedStage], on_progress: OnProgress, meter: Meter) -> None:
    for group in _groups(planned):
        if _trains(group[0]) and len(group) > 1:
            train.run_all(plan, group, partial(_train_one, plan, on_progress, meter))
            continue
        with _failures_named(group), log_attempt([stage.place for stage in group], meter):
            for stage, result in zip(group, _run_group(plan, group, on_progress), strict=True):
                stage.finish(result)


def _train_one(plan: Plan, on_progress: OnProgress, meter: Meter, stage: PlannedStage, stop: Future[None]) -> None:
    """Run one of several trainings, in a thread, until ``stop`` is set."""
    with _failures_named([stage]), log_attempt([stage.place], meter):
        stage.finish(train.run(plan, stage, on_progress, stop))


def _trains(stage: PlannedStage) -> bool:
    return stage.name == "train"


@contextlib.contextmanager
def _failures_named(group: Sequence[PlannedStage]) -> Iterator[None]:
    """Let whatever a library raises in a stage name the stage, and the log that has the traceback.

    Raises:
        StageError: in the place of an error that is neither xgray's nor of the disk.
    """
    try:
        yield
    except (XgrayError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise StageError(
            f"{group[0].label}: {type(error).__name__}: {reason}. A file of the run or of the model may be damaged; "
            f"the last file in {group[0].folder / LOGS} says more. Results so far are kept; the same command resumes "
            "the run"
        ) from error


def _groups(planned: Sequence[PlannedStage]) -> Iterator[list[PlannedStage]]:
    """Yield the stages that run together: those of one stream, all trainings, and every other one alone."""
    for stage in planned:
        stream = stage.stage.stream
        if stream or _trains(stage):
            group = [other for other in planned if (other.stage.stream, _trains(other)) == (stream, _trains(stage))]
        else:
            group = [stage]
        if group[0] is stage:
            yield group


def _run_group(plan: Plan, group: list[PlannedStage], on_progress: OnProgress) -> list[StageResult]:
    stream = group[0].stage.stream
    if stream is None:
        return [run_stage(plan, group[0], on_progress)]
    with interrupts.grace():
        results: list[StageResult] = import_module(stream).run(plan, group, on_progress)
    return results


def run_stage(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Run one stage that belongs to no stream; what its files already hold is not computed again. Ray must be up.

    Raises:
        InputError: its inputs are wrong, or a stage before it is not finished.
        StageError: workers died; the same call goes on.
    """
    return stage_module(planned.stage).run(plan, planned, on_progress)


@contextlib.contextmanager
def _cluster(
    plan: Plan, planned: Sequence[PlannedStage], address: str | None, on_progress: OnProgress
) -> Iterator[None]:
    """Connect to the cluster, and check that it can hold the stages and reach the run directory."""
    on_progress("Ray: starting", 0, 0)
    from xgray.distributed.cluster import check_shared, connect

    with connect(address):
        on_progress("Ray: started", 1, 1)
        interrupts.listen()  # Ray has replaced the handler of SIGTERM.
        check_shared(plan.run)
        check_capacity(plan, planned)
        yield


def _exported(run: str, on_progress: OnProgress) -> OnProgress:
    """Return a callback that reports to ``on_progress`` and to Prometheus."""
    from xgray.distributed.metrics import show_progress

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        on_progress(label, done, total, errors)
        show_progress(run, label, done, total)

    return report
