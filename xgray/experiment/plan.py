"""What every stage of an experiment is made of.

    train/{variant} ─▶ generate/{model} ─▶ score/{model} ─▶ evaluate ─▶ report
    probe ─▶ vectors ─▶ activations/{model}, intervene ──────────────▶ report
    retrieve ─▶ transfer (with evaluate) ────────────────────────────▶ report
    capability/{model} ──────────────────────────────────────────────▶ report

Every stage's fingerprint follows from the experiment file and the input files alone, so that a run of another
configuration is refused before anything is spent, and a finished one costs no more than hashing its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgray.config import BASE, MECHANISM, Experiment, Score, Section, Variant
from xgray.errors import InputError
from xgray.models.revisions import measuring_fingerprints, pinned_experiment
from xgray.runs.manifest import StageFolder, section_payload
from xgray.score.store.store import store_uri
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder

STAGES = ("train", "generate", "score", "evaluate", *MECHANISM, "report")

VERSIONS = dict.fromkeys(STAGES, 1) | {
    "train": 3, "generate": 3, "evaluate": 3, "probe": 2, "vectors": 2, "activations": 2, "intervene": 3, "transfer": 2,
    "report": 3,
}  # fmt: skip
"""Raised by hand when a stage's code would give other results for the same payload."""


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
            raise InputError(f"stage {self.place.label} is not finished in {self.place.folder}; run it first")


@dataclass(frozen=True)
class SamplingPlan:
    """Models that are sampled from the same prompts, scored, and evaluated together."""

    experiment: Experiment
    run: Folder
    """Where the prompts and the stages' folders lie."""
    generate: dict[str, Planned]
    score: dict[str, Planned]
    evaluate: Planned

    @property
    def models(self) -> list[str]:
        return list(self.generate)


@dataclass(frozen=True)
class Plan(SamplingPlan):
    """All stages of an experiment, in the order in which they run."""

    train: dict[str, Planned]
    mechanism: list[Planned]
    """The stages that look inside the network, those that the experiment has."""
    report: Planned

    def stages(self) -> Iterator[Planned]:
        yield from self.train.values()
        yield from self.generate.values()
        yield from self.score.values()
        yield self.evaluate
        yield from self.mechanism
        yield self.report

    def needs(self, one: Planned) -> list[Planned]:
        """The stages without whose results ``one`` cannot be made: those that its payload names as inputs."""
        if one == self.report:  # which shows of the others what is there
            return [self.evaluate]
        inputs = one.payload["inputs"].values()
        return [other for other in self.stages() if other.fingerprint in inputs]

    def require_model(self, model: str) -> None:
        """Raise unless the model's weights are there: where it is trained, that its training is finished."""
        if model in self.train:
            self.train[model].require()

    def stage(self, stage: str, model: str | None = None) -> Planned:
        """One of the mechanism's stages, finished.

        Raises:
            InputError: it is not finished, or the experiment does not have it.
        """
        for one in self.mechanism:
            if (one.place.stage, one.place.model) == (stage, model):
                one.require()
                return one
        raise InputError(f"the experiment has no section {stage!r}")


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

    experiment = pinned_experiment(experiment, generations is None)
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
        measured_with=measuring_fingerprints(experiment, generations is None),
        seed=experiment.seed,
    )
    mechanism = _plan_mechanism(experiment, planned, generate, evaluate, scorer) if generations is None else []
    finished = {one.place.label: one.fingerprint for one in (evaluate, *mechanism)}
    report = planned("report", None, finished, section=section_payload(experiment.report))
    return Plan(experiment, run, generate, score, evaluate, train, mechanism, report)


def _plan_models(
    experiment: Experiment, planned: Callable[..., Planned]
) -> tuple[dict[str, Planned], dict[str, Planned]]:
    from xgray.data.pairs import pairs_fingerprint
    from xgray.data.prompts import prompts_fingerprint
    from xgray.generate.build import engine_name
    from xgray.models.source import model_fingerprint

    base = model_fingerprint(experiment.model)
    prompts = prompts_fingerprint(experiment.prompts, experiment.languages)
    train: dict[str, Planned] = {}
    tuned: dict[str, str | None] = {BASE: None}
    for variant in experiment.variants:
        if variant.checkpoint is not None:
            tuned[variant.name] = model_fingerprint(variant.checkpoint_model)
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


def _plan_mechanism(
    experiment: Experiment,
    planned: Callable[..., Planned],
    generate: dict[str, Planned],
    evaluate: Planned,
    scorer: dict[str, Any],
) -> list[Planned]:
    """The stages whose sections the experiment has, in the order in which they run."""
    from xgray.data.parallel import parallel_fingerprint
    from xgray.data.prompts import check_english, prompts_fingerprint
    from xgray.data.source import resolve_input
    from xgray.data.task_file import is_task_file, task_files
    from xgray.generate.build import engine_name

    made: dict[str, str] = {}
    stages: list[Planned] = []
    drawn = experiment.evaluate.model_dump(include={"confidence", "resamples"})
    models = {
        model: {name: one.payload["inputs"][name] for name in ("model", "tuned")} for model, one in generate.items()
    }

    def add(stage: str, section: Section, inputs: dict[str, Any], model: str | None = None, **rest: Any) -> None:
        rest |= {"section": section_payload(section), "dtype": experiment.model.dtype}
        stages.append(planned(stage, model, {**models[model or BASE], **inputs}, **rest))
        made[stages[-1].place.label] = stages[-1].fingerprint

    def prompts(languages: list[str], limit: int | None) -> str:
        return prompts_fingerprint(experiment.prompts.at_most(limit), languages)

    if probe := experiment.probe:
        texts = {"data": file_fingerprint(resolve_input(probe.data, "labelled"))}
        texts |= {"test": file_fingerprint(resolve_input(probe.test, "labelled"))} if probe.test else {}
        add("probe", probe, texts, seed=experiment.seed)
    if vectors := experiment.vectors:
        check_english(experiment.prompts, experiment.languages, "vectors")
        inputs = {"probe": made["probe"], "prompts": prompts(["en"], vectors.limit)}
        add("vectors", vectors, inputs, seed=experiment.seed)
    if activations := experiment.activations:
        inputs = {"prompts": prompts(experiment.languages, activations.limit)}
        inputs |= {"vectors": made["vectors"]} if activations.neurons is None else {}
        for model in generate:
            add("activations", activations, inputs, model, intervals=drawn, seed=experiment.seed)
    if intervene := experiment.intervene:
        inputs = {"prompts": prompts(experiment.languages, intervene.limit), **scorer}
        inputs |= {"vectors": made["vectors"]} if intervene.neurons is None else {}
        add(
            "intervene",
            intervene,
            inputs,
            score=section_payload(experiment.score),
            evaluate=section_payload(experiment.evaluate),
            measured_with=evaluate.payload["measured_with"],
            engine=engine_name(experiment.generate),
            seed=experiment.seed,
        )
    if retrieve := experiment.retrieve:
        languages = list(dict.fromkeys(["en", *experiment.languages]))
        texts = {"parallel": parallel_fingerprint(retrieve.parallel, languages)}
        add("retrieve", retrieve, texts, languages=experiment.languages, intervals=drawn, seed=experiment.seed)
        if len(generate) > 1:
            inputs = {"retrieve": made["retrieve"], "evaluate": evaluate.fingerprint}
            stages.append(planned("transfer", None, inputs, seed=experiment.seed))
    if capability := experiment.capability:
        own = [Path(task) for task in capability.tasks if is_task_file(task)]
        files = {str(path): [file_fingerprint(one) for one in task_files(path)] for path in own}
        for model in generate:
            before = {} if model == BASE else {"before": made[f"capability/{BASE}"]}
            add("capability", capability, {"tasks": files, **before}, model, intervals=drawn, seed=experiment.seed)
    return stages


def training_seed(experiment: Experiment, variant: Variant) -> int:
    seed = experiment.train_section(variant).seed
    return experiment.seed if seed is None else seed


def resolved_score(experiment: Experiment) -> Score:
    """The experiment's ``score`` section, with its store."""
    section = experiment.score
    execution = section.execution.model_copy(update={"store": store_uri(section, experiment.runs)})
    return section.model_copy(update={"execution": execution})
