"""Running the stages of an experiment that are not done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import yaml

from xgray import stop
from xgray.attempts import attempt
from xgray.config import MECHANISM
from xgray.errors import InputError
from xgray.explain import run_mechanism
from xgray.lease import Lease
from xgray.meter import Meter, OnProgress
from xgray.plan import STAGES, Plan, Planned, resolved_score, training_seed
from xgray.prompt_file import PROMPTS
from xgray.runs import Found
from xgray.sampling import evaluate, generate_and_score, new_prompts
from xgray.watching import every

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import EngineName

SAMPLED, SCORED = ("generate", "intervene"), ("score", "intervene")
"""The stages that need an engine, and those that need a scorer."""
SPREAD = ("evaluate", "probe", "vectors", "activations", "retrieve", "capability")
"""The stages of workers that each hold a copy of a model: sections with ``execution.num_workers``."""
OF_MLPS = ("probe", "vectors", "activations", "intervene")
"""The stages that must know where a model's MLPs are."""


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
        _check_there(plan, stages)
    asked = [one for one in plan.stages() if one.place.stage in stages]
    # A finished run is left as it is, lease and all.
    if all(_found(one, force) == "finished" for one in asked):
        return
    meter = Meter()

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        meter(label, done, total, errors)
        on_progress(label, done, total, errors)

    _check_others(plan, asked, force)
    _check_neurons(plan, asked, force)
    _check_tasks(plan, asked, force)
    with Lease(plan.run, meter.progress), stop.interruptible():
        _check_scorer(plan, asked, force)
        prompts = _new_prompts(plan, asked, force)
        # `begin` with force deletes old results.
        todo = [one for one in asked if one.place.begin(one.payload, _anew(one, force))]
        write_resolved(plan)
        if prompts is not None:
            plan.run.write_bytes(PROMPTS, prompts)
            del prompts
        _run_stages(plan, todo, address, report, meter)


def _anew(one: Planned, force: bool) -> bool:
    """Whether other results may be replaced. A report may: it is drawn in seconds from files that stay."""
    return force or one.place.stage == "report"


def _found(one: Planned, force: bool) -> Found:
    return one.place.found(one.payload, _anew(one, force))


def _check_there(plan: Plan, stages: tuple[str, ...]) -> None:
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


def _check_others(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse what stages that are not asked for do not fit, or are missing for, while the run is as it was."""
    anew: list[Planned] = []
    for one in plan.stages():
        needed = plan.needs(one)
        if one in asked:
            found = _found(one, force)
            if found in ("nothing", "other"):
                anew.append(one)
            for before in needed:
                if found != "finished" and before not in asked:
                    before.place.found(before.payload)  # says what has changed
                    before.require()
        elif any(before in anew for before in needed):
            anew.append(one)  # out of date, which is no contradiction
        else:
            _found(one, force=False)


def _check_scorer(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse what no scorer can do before anything is spent or marked as begun."""
    if all(_found(one, force) == "finished" for one in asked if one.place.stage in SCORED):
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import check_languages

    # Refuses a missing key and the like, and fits a local scorer once for all workers.
    section = resolved_score(plan.experiment)
    # A language without a calibration cannot be scored, even unvalidated.
    unvalidated = section.unvalidated_languages and section.calibration is None
    check_languages(build_scorer(section), plan.experiment.languages, unvalidated)


def _check_tasks(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse tasks that the harness does not know before anything is spent or marked as begun."""
    section = plan.experiment.capability
    todo = [one for one in asked if one.place.stage == "capability" and _found(one, force) != "finished"]
    if section and todo:
        from xgray.evaluate.harness import find_tasks

        find_tasks(section.tasks)


def _check_neurons(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse MLPs of an unknown kind, and listed neurons that the model does not have, before anything is spent."""
    todo = {one.place.stage for one in asked if one.place.stage in OF_MLPS and _found(one, force) != "finished"}
    if not todo:
        return
    from xgray.mechanism.neurons import check_neurons, down_projections
    from xgray.models import load_skeleton, resolve

    experiment = plan.experiment
    skeleton = load_skeleton(resolve(experiment.model), experiment.model.revision)
    down_projections(skeleton)
    if experiment.vectors and "vectors" in todo:
        check_neurons(experiment.vectors.given, skeleton, "vectors.given")
    sections = {"activations": experiment.activations, "intervene": experiment.intervene}
    for name, section in sections.items():
        if section and section.neurons and name in todo:
            check_neurons(section.neurons, skeleton, f"{name}.neurons")


def _run_stages(plan: Plan, todo: list[Planned], address: str | None, on_progress: OnProgress, meter: Meter) -> None:
    training = [one for one in todo if one.place.stage == "train"]
    sampling = [one for one in todo if one.place.stage in ("generate", "score")]
    shown = on_progress
    with contextlib.ExitStack() as stack:
        inside = [one for one in plan.mechanism if one in todo]
        if training or sampling or plan.evaluate in todo or inside:
            from xgray.distributed.cluster import check_shared, connect

            stack.enter_context(connect(address))
            stop.listen()  # Ray has taken SIGTERM
            check_shared(plan.run)
            shown = _shown(plan.experiment.name, on_progress)
            _check_room(plan, todo)
        for one in training:
            with attempt([one.place], meter):
                _train(plan, one, shown)
        if sampling:
            with attempt([one.place for one in sampling], meter), stop.grace():
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


def _check_room(plan: Plan, todo: list[Planned]) -> None:
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


def _shown(run: str, on_progress: OnProgress) -> OnProgress:
    """As ``on_progress``, and for Prometheus."""
    from xgray.distributed.metrics import show_progress

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        on_progress(label, done, total, errors)
        show_progress(run, label, done, total)

    return report


def _report(plan: Plan, on_progress: OnProgress) -> None:
    from xgray.report.build import build_report

    plan.evaluate.require()
    on_progress("report", 0, 1)
    plan.report.place.finish(plan.report.payload, build_report(plan.run, plan.experiment))
    on_progress("report", 1, 1)


def _new_prompts(plan: Plan, asked: list[Planned], force: bool) -> pa.Buffer | None:
    """The content of the run's prompt file; None where it is there or not needed.

    Raises:
        InputError: a prompt is wrong.
    """
    if all(_found(one, force) == "finished" for one in asked if one.place.stage == "generate"):
        return None
    return new_prompts(plan)


def _train(plan: Plan, one: Planned, on_progress: OnProgress) -> None:
    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.status import training_steps

    experiment = plan.experiment
    variant = experiment.variant(one.place.model or "")
    section = experiment.train_section(variant)
    with _watching(lambda: training_steps(one.place), one.place.label, on_progress):
        result = run_training(
            experiment.model,
            section,
            read_pairs(section.pairs, section.limit),
            training_seed(experiment, variant),
            one.place.folder,
            reference_fingerprint=one.payload["inputs"]["model"],
        )
    one.place.finish(one.payload, result)


@contextlib.contextmanager
def _watching(read: Callable[[], tuple[int, int]], label: str, on_progress: OnProgress) -> Iterator[None]:
    """Report what ``read`` says every second while the block runs; its work goes on in other processes."""

    def look() -> None:
        with contextlib.suppress(OSError):  # of the storage, which the next second may do better
            on_progress(label, *read())

    on_progress(label, *read())
    try:
        with every(1.0, look):
            yield
    finally:
        on_progress(label, *read())


def _targets(plan: Plan, engine: EngineName | None) -> list[Target]:
    """Every model, and the weights that an engine loads for it."""
    from xgray.distributed.cluster import reach
    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import serves_adapter
    from xgray.model_weights import model_weights
    from xgray.nodes import room

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
