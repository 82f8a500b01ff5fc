"""Plan an experiment: for every stage its folder, and the payload of all that its results depend on.

    train/{variant} ─▶ generate/{model} ─▶ score/{model} ─▶ evaluate ─▶ report
                       score/{model}, score@{scorer}/{model} ─▶ robustness ─▶ report
    probe ─▶ vectors ─▶ activations/{model}, intervene ──────────────▶ report
    retrieve ─▶ transfer (with evaluate) ────────────────────────────▶ report
    capability/{model} ──────────────────────────────────────────────▶ report

Every fingerprint follows from the experiment file and the input files alone. So a run of another configuration is
refused before anything is spent, and a finished run costs no more than hashing its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

from xgray.config import BASE, Experiment, Score, Section
from xgray.config.stages import Stage, model_names, stages_of
from xgray.errors import InputError
from xgray.runs.manifest import (
    MANIFEST,
    PENDING,
    FolderState,
    StageFolder,
    StageResult,
    read_record,
    section_payload,
)
from xgray.runs.progress import OnProgress
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run, for one model where the stage has several, and all that its results depend on."""

    stage: Stage
    """The stage's row in the table."""
    place: StageFolder
    payload: dict[str, Any]
    """What enters the fingerprint: the stage's version, its section, its inputs' fingerprints."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """The experiment's protocol and the switches that differ from it, for the manifest."""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def model(self) -> str | None:
        return self.place.model

    @property
    def label(self) -> str:
        """``{stage}`` or ``{stage}/{model}``."""
        return self.place.label

    @property
    def folder(self) -> Folder:
        return self.place.folder

    @property
    def rows(self) -> Folder:
        return self.place.rows

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.payload)

    @property
    def is_finished(self) -> bool:
        """Whether the folder holds finished results of this very payload."""
        manifest = self.place.manifest()
        return manifest is not None and manifest["fingerprint"] == self.fingerprint

    def require(self) -> None:
        """Check that the stage is finished.

        Raises:
            InputError: it is not.
        """
        if not self.is_finished:
            raise InputError(f"stage {self.label} is not finished in {self.folder}; run it first")

    def state(self, force: bool = False) -> FolderState:
        """Return what the folder holds; see :meth:`xgray.runs.manifest.StageFolder.state`."""
        return self.place.state(self.payload, self._may_replace(force))

    def begin(self, force: bool = False) -> bool:
        """Mark the folder as begun, and return whether there is something to do; ``force`` replaces other results.

        A report stays as it is until the next one is whole.
        """
        return self.place.begin(self.payload, self._may_replace(force), keeps_files=self.name == "report")

    def finish(self, result: StageResult) -> None:
        """Write the manifest."""
        self.place.finish(self.payload, result, self.protocol)

    def _may_replace(self, force: bool) -> bool:
        """Whether results of another configuration may be replaced: a report always, it is written again in seconds."""
        return force or self.name == "report"


@dataclass(frozen=True)
class Plan:
    """The stages of an experiment, in the order in which they run."""

    experiment: Experiment
    run: Folder
    """The run directory; an intervention's inner run has one of its own."""
    models: list[str]
    stages: list[PlannedStage]
    imported: Mapping[str, str] | None = None
    """Fingerprints of completions that came from the user's files, by model; None where models are sampled."""
    _by_label: dict[str, PlannedStage] = field(default_factory=dict, compare=False, repr=False)

    def add(self, stage: PlannedStage) -> None:
        self.stages.append(stage)
        self._by_label[stage.label] = stage

    def find(self, name: str, model: str | None = None) -> PlannedStage | None:
        """Return the planned stage, or None where the experiment does not have it."""
        return self._by_label.get(f"{name}/{model}" if model else name)

    def stage(self, name: str, model: str | None = None) -> PlannedStage:
        """Return the planned stage.

        Raises:
            InputError: the experiment does not have it.
        """
        planned = self.find(name, model)
        if planned is None:
            raise InputError(f"the experiment has no section {name!r}")
        return planned

    def finished(self, name: str, model: str | None = None) -> PlannedStage:
        """Return the planned stage, which must be finished.

        Raises:
            InputError: it is not finished, or the experiment does not have it.
        """
        planned = self.stage(name, model)
        planned.require()
        return planned

    def by_model(self, name: str) -> dict[str, PlannedStage]:
        """Return the planned stages of this name by model."""
        return {stage.model: stage for stage in self.stages if stage.name == name and stage.model is not None}

    def needs(self, planned: PlannedStage) -> list[PlannedStage]:
        """Return the stages whose results ``planned`` is made from, as the table of stages names them."""
        needed = []
        for name in planned.payload["inputs"]:
            template = planned.stage.needs.get(name, planned.stage.needs.get("*"))
            if template is not None:
                stage = self._by_label.get(template.format(input=name, model=planned.model))
                needed += [stage] if stage else []
        return needed

    def is_of_earlier_version(self, planned: PlannedStage) -> bool:
        """Whether the folder holds finished results that differ from the plan only in the stages' versions.

        They are what an earlier version of the code made of the same configuration: a report shows them as they are.
        """
        manifest = planned.place.manifest()
        if manifest is None or planned.is_finished:
            return False
        old, new = manifest["payload"], planned.payload
        sources = {stage.fingerprint: stage for stage in self.needs(planned)}

        def is_alike(name: str) -> bool:
            source = sources.get(new["inputs"].get(name))
            if old["inputs"].get(name) == new["inputs"].get(name):
                return True
            return source is not None and self.is_of_earlier_version(source)

        other = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} - {"version", "inputs"}
        is_newer = old.get("version", 0) > new["version"]
        return not other and not is_newer and all(map(is_alike, old["inputs"].keys() | new["inputs"].keys()))

    def require_model(self, model: str) -> None:
        """Check that a model's weights exist: that its training, if it is trained, is finished.

        Raises:
            InputError: the training is not finished.
        """
        if training := self.find("train", model):
            training.require()


class StageModule(Protocol):
    """What a file in ``xgray/experiment/stages`` defines, next to an optional ``check(plan, planned)``."""

    def payload(self, plan: Plan, model: str | None) -> dict[str, Any]:
        """Return what the results depend on, ``inputs`` among it; ``plan`` holds the stages planned before."""

    def run(self, plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
        """Write the results into ``planned.folder``. Ray is up, except for a report."""


def stage_module(stage: Stage) -> StageModule:
    """Import the file of a stage."""
    return cast(StageModule, import_module(stage.module))


def run_folder(experiment: Experiment) -> Folder:
    """Return the run directory of an experiment."""
    return Folder(experiment.runs) / experiment.name


def make_plan(experiment: Experiment, imported: Mapping[str, str] | None = None) -> Plan:
    """Plan all stages of an experiment.

    Args:
        experiment: names of the hub are replaced by the commits that they stand for now.
        imported: fingerprints of completions by model, where they came from the user's files. Neither training nor
            generating nor any stage inside the network is planned then.

    Raises:
        InputError: an input file is missing or wrong.
    """
    from xgray.models.revisions import pin_experiment
    from xgray.models.source import recorded_identities

    experiment = pin_experiment(experiment, imported is None)
    models = model_names(experiment) if imported is None else list(imported)
    plan = Plan(experiment, run_folder(experiment), models, [], imported)
    protocol = {"name": experiment.protocol, "differing": experiment.differing_switches()}
    places = [
        (stage, StageFolder(plan.run / stage.name / model if model else plan.run / stage.name, stage.name, model))
        for stage, model in stages_of(experiment, imported is not None)
    ]
    with recorded_identities(cache(lambda: _recorded([place for _, place in places]))):
        for stage, place in places:
            payload = {"version": stage.version, **_payload(plan, stage, place.model)}
            plan.add(PlannedStage(stage, place, payload, protocol))
    return plan


def _recorded(places: Sequence[StageFolder]) -> frozenset[str]:
    """Return all texts in the payloads that the stages of a run have recorded, identities of models among them."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(part)

    found: set[str] = set()
    for place in places:
        for name in (MANIFEST, PENDING):
            if place.folder.exists(name):
                with suppress(InputError):  # a damaged record is refused where the stage's state is asked for
                    found.update(texts(read_record(place.folder, name)["payload"]))
    return frozenset(found)


def _payload(plan: Plan, stage: Stage, model: str | None) -> dict[str, Any]:
    if stage.scorer is None:
        return stage_module(stage).payload(plan, model)
    from xgray.experiment.stages.score import payload_of_scorer

    return payload_of_scorer(plan, stage.scorer, model)


def inside_payload(
    plan: Plan, section: Section, inputs: Mapping[str, Any], model: str | None = None, **rest: Any
) -> dict[str, Any]:
    """Return the payload of a stage that looks inside the network of ``model``, by default the base model.

    Args:
        inputs: fingerprints of the stage's files, next to those of the model itself.
        rest: whatever else the results depend on.
    """
    sampled = plan.stage("generate", model or BASE).payload["inputs"]
    weights = {name: sampled[name] for name in ("model", "tuned")}
    fields = section_payload(section)
    # Beside the section, where earlier versions have the model's dtype.
    dtype = fields.pop("dtype", plan.experiment.model.dtype)
    return {"inputs": {**weights, **inputs}, "section": fields, "dtype": dtype, **rest}


def resolved_score(experiment: Experiment, scorer: str | None = None) -> Score:
    """Return the ``score`` section of a scorer, by default the first one, with its score store filled in."""
    from xgray.score.store.location import store_uri

    section = experiment.score_section(scorer)
    execution = section.execution.model_copy(update={"store": store_uri(section, experiment.runs)})
    return section.model_copy(update={"execution": execution})
