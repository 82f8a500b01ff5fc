"""Running the stages of an experiment that are not done."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import yaml

from xgray import stop
from xgray.attempts import attempt
from xgray.config import BASE, Model, Variant
from xgray.lease import Lease
from xgray.meter import Meter, OnProgress
from xgray.plan import STAGES, Plan, Planned, resolved_score, store_of, training_seed
from xgray.prompt_file import PROMPTS

if TYPE_CHECKING:
    import pyarrow as pa

    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import EngineName


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
        ConflictError: a stage's folder holds results of another configuration, and ``force`` is off.
        InputError: a stage that is needed but not asked for is not finished.
        StageError: a stage failed; the same call goes on where it stopped.
    """
    asked = [one for one in plan.stages() if one.place.stage in stages]
    # A finished run is left as it is, lease and all.
    if all(one.place.found(one.payload, force) == "finished" for one in asked):
        return
    meter = Meter()

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        meter(label, done, total, errors)
        on_progress(label, done, total, errors)

    with Lease(plan.run, meter.progress), stop.interruptible():
        _check_scorer(plan, asked, force)
        prompts = _new_prompts(plan, asked, force)
        # `begin` with force deletes old results.
        todo = [one for one in asked if one.place.begin(one.payload, force)]
        write_resolved(plan)
        if prompts is not None:
            plan.run.write_bytes(PROMPTS, prompts)
            del prompts
        _run_stages(plan, todo, address, report, meter)


def _check_scorer(plan: Plan, asked: list[Planned], force: bool) -> None:
    """Refuse what no scorer can do before anything is spent or marked as begun."""
    if all(one.place.found(one.payload, force) == "finished" for one in asked if one.place.stage == "score"):
        return
    from xgray.score.build import build_scorer
    from xgray.score.scorer import check_languages

    # Refuses a missing key and the like, and fits a local scorer once for all workers.
    section = resolved_score(plan.experiment)
    # A language without a calibration cannot be scored, even unvalidated.
    unvalidated = section.unvalidated_languages and section.calibration is None
    check_languages(build_scorer(section), plan.experiment.languages, unvalidated)


def _run_stages(plan: Plan, todo: list[Planned], address: str | None, on_progress: OnProgress, meter: Meter) -> None:
    training = [one for one in todo if one.place.stage == "train"]
    sampling = [one for one in todo if one.place.stage in ("generate", "score")]
    shown = on_progress
    with contextlib.ExitStack() as stack:
        if training or sampling or plan.evaluate in todo:
            from xgray.distributed.cluster import connect

            stack.enter_context(connect(address))
            stop.listen()  # Ray has taken SIGTERM
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
                _evaluate(plan, shown)
    if plan.report in todo:
        with attempt([plan.report.place], meter):
            _report(plan, on_progress)


def _check_room(plan: Plan, todo: list[Planned]) -> None:
    """Refuse what this cluster can never hold before the first stage takes its hours."""
    from xgray.distributed.placement import place_engines, place_training
    from xgray.train.feasible import check_feasible

    experiment = plan.experiment
    for one in todo:
        if one.place.stage == "train":
            section = experiment.train_section(_variant(plan, one.place.model or ""))
            check_feasible(section, place_training(section.execution)[0])
    if any(one.place.stage == "generate" for one in todo):
        place_engines(experiment.generate, experiment.score)


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
    if all(one.place.found(one.payload, force) == "finished" for one in asked if one.place.stage == "generate"):
        return None
    from xgray.data.rtp_lx import read_prompts
    from xgray.prompt_file import PromptFile, prompt_file

    (wanted,) = {one.payload["inputs"]["prompts"] for one in plan.generate.values()}
    if plan.run.exists(PROMPTS) and PromptFile(plan.run).fingerprint == wanted:
        return None
    return prompt_file(read_prompts(plan.experiment.prompts, plan.experiment.languages), wanted)


def _variant(plan: Plan, name: str) -> Variant:
    return next(variant for variant in plan.experiment.variants if variant.name == name)


def _train(plan: Plan, one: Planned, on_progress: OnProgress) -> None:
    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.status import training_steps

    experiment = plan.experiment
    variant = _variant(plan, one.place.model or "")
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
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(OSError):  # of the storage, which the next second may do better
                on_progress(label, *read())

    on_progress(label, *read())
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        on_progress(label, *read())


def _targets(plan: Plan, engine: EngineName | None) -> list[Target]:
    """Every model, and the weights that an engine loads for it."""
    from xgray.distributed.cluster import total
    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import Weights, serves_adapter
    from xgray.models import is_adapter, resolve
    from xgray.train.export import merged

    experiment = plan.experiment
    base = Weights(resolve(experiment.model), experiment.model.revision, experiment.model.dtype)
    targets = []
    for model in plan.models:
        weights, adapter = base, None
        if model in plan.train:
            folder = plan.train[model].place.folder
            adapter = (folder / "adapter").uri if folder.exists("adapter") else None
            if adapter is None or not serves_adapter(engine, adapter, total("GPU")):
                weights, adapter = Weights((folder / "merged").uri, None, base.dtype), None
        elif model != BASE:
            checkpoint = Model(id=_variant(plan, model).checkpoint or "")
            path = resolve(checkpoint)
            if not is_adapter(path):
                weights = Weights(path, checkpoint.revision, base.dtype)
            elif serves_adapter(engine, path, total("GPU")):
                adapter = path
            else:
                weights = Weights(merged(experiment.model, path), None, base.dtype)
        places = plan.generate[model].place.rows, plan.score[model].place.rows
        targets.append(Target(model, weights, adapter, *places))
    return targets


def _generate_and_score(plan: Plan, todo: list[Planned], on_progress: OnProgress) -> None:
    """Both stages of all models in one stream, so that a scorer works while the engine goes on."""
    from xgray.distributed.pipeline import run_pipeline
    from xgray.generate.build import engine_name

    experiment = plan.experiment
    sampled = [one for one in todo if one.place.stage == "generate"]
    scored = [one for one in todo if one.place.stage == "score"]
    for one in sampled:
        if one.place.model in plan.train:
            plan.train[one.place.model].require()
    for one in scored:
        made = plan.generate[one.place.model or ""]
        if made not in sampled:
            made.require()
    imported = not any("engine" in one.payload for one in plan.generate.values())
    engine = None if imported else engine_name(experiment.generate)
    names = {one.place.model for one in todo}
    targets = [target for target in _targets(plan, engine) if target.model in names]
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


def _evaluate(plan: Plan, on_progress: OnProgress) -> None:
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


def _unvalidated(plan: Plan) -> list[str]:
    """The languages that the scores' scorer was not validated on; none where scores came from the user's files."""
    told = [(one.place.manifest() or {}).get("measured", {}).get("scorer", {}) for one in plan.score.values()]
    validated = [set(one["validated"]) for one in told if "validated" in one]
    return [code for code in plan.experiment.languages if any(code not in known for known in validated)]
