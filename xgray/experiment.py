"""A whole experiment: what each stage is made of, and running those that are not done.

    train/{variant} ─▶ generate/{model} ─▶ score/{model} ─▶ evaluate ─▶ report

Every stage's fingerprint follows from the experiment file and the input files alone, so that a run of another
configuration is refused before anything is spent, and a finished one costs no more than hashing its inputs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from xgray.config import BASE, STORE, Experiment, Model, Score, Variant
from xgray.errors import InputError
from xgray.runs import StageFolder, fingerprint, section_payload
from xgray.storage import Folder

if TYPE_CHECKING:
    from xgray.distributed.pipeline import Target
    from xgray.generate.engine import EngineName

STAGES = ("train", "generate", "score", "evaluate", "report")

VERSIONS = {"train": 1, "generate": 1, "score": 1, "evaluate": 1, "report": 1}
"""Raised by hand when a stage's code would give other results for the same payload."""

OnProgress = Callable[[str, int, int], None]
"""Called with a stage's label, how much of it is done and how much there is."""


@dataclass(frozen=True)
class Planned:
    """A stage's folder, and all that its results depend on."""

    place: StageFolder
    payload: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.payload)

    @property
    def done(self) -> bool:
        manifest = self.place.manifest()
        return manifest is not None and manifest["fingerprint"] == self.fingerprint

    def require(self) -> None:
        """Raise unless this stage is finished as planned."""
        if not self.done:
            raise InputError(f"stage {self.place.label} is not finished in {self.place.folder.uri}; run it first")


@dataclass(frozen=True)
class Plan:
    """All stages of an experiment, in the order in which they run."""

    experiment: Experiment
    run: Folder
    train: dict[str, Planned]
    generate: dict[str, Planned]
    score: dict[str, Planned]
    evaluate: Planned
    report: Planned

    @property
    def models(self) -> list[str]:
        return list(self.generate)

    def stages(self) -> Iterator[Planned]:
        yield from self.train.values()
        yield from self.generate.values()
        yield from self.score.values()
        yield self.evaluate
        yield self.report


def run_folder(experiment: Experiment) -> Folder:
    return Folder(experiment.runs) / experiment.name


def make_plan(experiment: Experiment, generations: Mapping[str, str] | None = None) -> Plan:
    """What every stage is made of.

    Args:
        generations: fingerprints of completions by model name, where they came from the user's files; the models
            are then these, and neither training nor generating is planned.

    Raises:
        InputError: an input file is missing or wrong.
    """
    from xgray.score.build import scorer_inputs

    if generations is None:
        experiment = _pinned(experiment)
    run = run_folder(experiment)

    def planned(stage: str, model: str | None, inputs: dict[str, Any], **rest: Any) -> Planned:
        folder = run / stage / model if model else run / stage
        return Planned(StageFolder(folder, stage, model), {"version": VERSIONS[stage], "inputs": inputs, **rest})

    train: dict[str, Planned] = {}
    if generations is None:
        train, generate = _plan_models(experiment, planned)
    else:
        generate = {model: planned("generate", model, {"imported": value}) for model, value in generations.items()}
    scorer = scorer_inputs(experiment.score)
    score = {
        model: planned(
            "score",
            model,
            {"completions": made.fingerprint, **scorer},
            section=section_payload(experiment.score),
        )
        for model, made in generate.items()
    }
    evaluate = planned(
        "evaluate",
        None,
        {model: one.fingerprint for model, one in score.items()},
        section=section_payload(experiment.evaluate),
        base_model=experiment.model.model_dump(mode="json"),
        seed=experiment.seed,
    )
    report = planned("report", None, {"evaluate": evaluate.fingerprint}, section=section_payload(experiment.report))
    return Plan(experiment, run, train, generate, score, evaluate, report)


def _pinned(experiment: Experiment) -> Experiment:
    """The experiment with the hub's commits as its models' revisions."""
    from xgray.models import pinned

    fluency = experiment.evaluate.fluency
    if fluency.model is not None and fluency.kind != "none":
        fluency = fluency.model_copy(update={"model": pinned(fluency.model)})
    evaluate = experiment.evaluate.model_copy(update={"fluency": fluency})
    return experiment.model_copy(update={"model": pinned(experiment.model), "evaluate": evaluate})


def _plan_models(
    experiment: Experiment, planned: Callable[..., Planned]
) -> tuple[dict[str, Planned], dict[str, Planned]]:
    from xgray.data.pairs import pairs_fingerprint
    from xgray.generate.build import engine_name
    from xgray.models import model_fingerprint, pinned

    base = model_fingerprint(experiment.model)
    prompts = fingerprint({"prompts": [[p.prompt_id, p.text] for p in read_prompts(experiment)]})
    train: dict[str, Planned] = {}
    tuned: dict[str, str | None] = {BASE: None}
    for variant in experiment.variants:
        if variant.checkpoint is not None:
            tuned[variant.name] = model_fingerprint(pinned(Model(id=variant.checkpoint)))
            continue
        section = experiment.train_section(variant)
        pairs = pairs_fingerprint(section.pairs, section.limit)
        train[variant.name] = planned(
            "train",
            variant.name,
            {"model": base, "pairs": pairs},
            section={**section_payload(section), "seed": training_seed(experiment, variant)},
        )
        tuned[variant.name] = train[variant.name].fingerprint
    generate = {
        model: planned(
            "generate",
            model,
            {"model": base, "tuned": made, "prompts": prompts},
            section=section_payload(experiment.generate),
            dtype=experiment.model.dtype,
            engine=engine_name(experiment.generate),
            seed=experiment.seed,
        )
        for model, made in tuned.items()
    }
    return train, generate


def training_seed(experiment: Experiment, variant: Variant) -> int:
    seed = experiment.train_section(variant).seed
    return experiment.seed if seed is None else seed


def read_prompts(experiment: Experiment) -> list[Any]:
    from xgray.data.rtp_lx import read_prompts as read

    return read(experiment.prompts, experiment.languages)


def scoring(experiment: Experiment) -> Score:
    """The experiment's ``score`` section, with the store that all runs beside it share."""
    section = experiment.score
    store = section.execution.store or f"{experiment.runs.rstrip('/')}/{STORE}"
    return section.model_copy(update={"execution": section.execution.model_copy(update={"store": Folder(store).uri})})


def write_resolved(plan: Plan) -> None:
    """``experiment.yaml`` of the run: the file with every default and override in place."""
    text = yaml.safe_dump(plan.experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    plan.run.write_bytes("experiment.yaml", text.encode())


def run_experiment(
    plan: Plan,
    stages: tuple[str, ...] = STAGES,
    force: bool = False,
    address: str | None = None,
    on_progress: OnProgress = lambda label, done, total: None,
) -> None:
    """Run those of ``stages`` that are not finished, in order; finished ones are passed over.

    Raises:
        ConflictError: a stage's folder holds results of another configuration, and ``force`` is off.
        InputError: a stage that is needed but not asked for is not finished.
        StageError: a stage failed; the same call goes on where it stopped.
    """
    # Everything that can be refused is refused before anything is spent; `begin` with force deletes old results.
    todo = [one for one in plan.stages() if one.place.stage in stages and one.place.begin(one.payload, force)]
    if not todo:
        return
    if any(one.place.stage == "score" for one in todo):
        from xgray.score.build import build_scorer
        from xgray.score.scorer import check_languages

        # Refuses a missing key and the like, and fits a local scorer once for all workers.
        section = scoring(plan.experiment)
        # A language without a calibration cannot be scored, even unvalidated.
        unvalidated = section.unvalidated_languages and section.calibration is None
        check_languages(build_scorer(section), plan.experiment.languages, unvalidated)
    write_resolved(plan)
    training = [one for one in todo if one.place.stage == "train"]
    sampling = [one for one in todo if one.place.stage in ("generate", "score")]
    with contextlib.ExitStack() as stack:
        if training or sampling or plan.evaluate in todo:
            from xgray.distributed.cluster import connect

            stack.enter_context(connect(address))
        for one in training:
            _train(plan, one, on_progress)
        if sampling:
            _generate_and_score(plan, sampling, on_progress)
        if plan.evaluate in todo:
            _evaluate(plan, on_progress)
    if plan.report in todo:
        plan.evaluate.require()
        from xgray.report.build import build_report

        on_progress("report", 0, 1)
        plan.report.place.finish(plan.report.payload, build_report(plan.run, plan.experiment))
        on_progress("report", 1, 1)


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
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            on_progress(label, *read())

    on_progress(label, *read())
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
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
            adapter = f"{folder.uri}/adapter" if folder.exists("adapter") else None
            if adapter is None or not serves_adapter(engine, adapter, total("GPU")):
                weights, adapter = Weights(f"{folder.uri}/merged", None, base.dtype), None
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
        [] if imported else read_prompts(experiment),
        engine,
        experiment.generate if sampled else None,
        scoring(experiment) if scored else None,
        experiment.seed,
        on_progress,
    )
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
