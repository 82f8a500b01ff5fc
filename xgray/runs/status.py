"""What of a run is done, from its files alone: it can be asked on any machine that reads them, at any time.

A driver that is alive tells in its lease how far it is and how fast; finished stages tell in their manifests. Only for
what was begun and left are files counted. No file's time is looked at: clocks differ, and jump.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from xgray.config import BASE, MECHANISM, Experiment
from xgray.errors import XgrayError
from xgray.runs.attempt_log import Attempt, last_attempt
from xgray.runs.lease import Holder, driver
from xgray.runs.manifest import PENDING, StageFolder
from xgray.runs.progress import Progress
from xgray.runs.prompts import PROMPTS, PromptFile
from xgray.runs.resolved import load_run
from xgray.runs.training_progress import training_steps
from xgray.storage.folder import Folder


@dataclass(frozen=True)
class StageState:
    label: str
    state: str
    """``done``, ``running``, ``waiting`` (a driver will come to it), ``failed``, ``stopped`` (begun and left),
    ``damaged`` or ``missing``."""
    num_done: int
    num_total: int | None
    """Prompts, or optimizer steps of a training; None where it is not known yet."""
    num_errors: int | None
    """Prompts recorded with an error and missing scores: of all where the stage is done, of this attempt where it is
    running; None where nobody has counted."""
    rate: float | None
    """Prompts or steps a second of the attempt that is running."""
    eta_seconds: float | None
    num_attempts: int
    error: str | None
    """How the last attempt ended, where it did not end well."""
    standstill_seconds: float | None = None
    """How long nothing has been done, by the clock of the driver, where that is longer than usual."""


@dataclass(frozen=True)
class RunState:
    run: str
    driver: str | None
    """Who drives it: host, process, since when, last sign of life."""
    driver_alive: bool
    stages: list[StageState]


def run_state(run: Folder) -> RunState:
    """The state of every stage of the run, in the order in which they run.

    Raises:
        InputError: there is no run here.
    """
    experiment = load_run(run)
    found = driver(run)
    holder, alive = found if found else (None, False)
    places = [
        StageFolder(run / "train" / variant.name, "train", variant.name)
        for variant in experiment.variants
        if variant.checkpoint is None
    ]
    for stage in ("generate", "score"):
        for model in [BASE, *(variant.name for variant in experiment.variants)]:
            places.append(StageFolder(run / stage / model, stage, model))
    places.append(StageFolder(run / "evaluate", "evaluate"))
    places += [
        StageFolder(run / stage / model if model else run / stage, stage, model)
        for stage, model in _mechanism(experiment)
    ]
    places.append(StageFolder(run / "report", "report"))
    states = [_state(place, holder if alive else None) for place in places]
    return RunState(run.uri, str(holder) if holder else None, alive, _with_totals(states, run))


def _mechanism(experiment: Experiment) -> Iterator[tuple[str, str | None]]:
    """The stages of the mechanism that the experiment has, and their models, in the order in which they run."""
    models = [BASE, *(variant.name for variant in experiment.variants)]
    for stage in MECHANISM:
        if stage == "transfer":
            present = experiment.retrieve is not None and len(models) > 1
        else:
            present = getattr(experiment, stage) is not None
        if present:
            yield from ((stage, model) for model in (models if stage in ("activations", "capability") else (None,)))


def _with_totals(states: list[StageState], run: Folder) -> list[StageState]:
    """All models have the same prompts, those of the run's file where it has one."""
    sampling = [one for one in states if one.label.startswith(("generate/", "score/"))]
    if all(one.num_total is not None for one in sampling):
        return states
    known = [one.num_total for one in sampling if one.num_total is not None]
    total = len(PromptFile(run)) if run.exists(PROMPTS) else max(known, default=None)
    return [replace(one, num_total=total) if one in sampling and one.num_total is None else one for one in states]


def _state(place: StageFolder, holder: Holder | None) -> StageState:
    """Of one stage; ``holder`` is the driver that is alive."""
    last = last_attempt(place.folder)
    tries = last.number if last else 0
    try:
        manifest = place.manifest()
        if manifest is not None:
            return _finished(place, manifest, tries)
        if not place.folder.exists(PENDING):
            return StageState(place.label, "missing", 0, _unit(place), None, None, None, tries, None)
        if holder and (live := _live(place, holder)):
            return StageState(
                place.label,
                "running",
                live.done,
                live.total or None,
                live.errors,
                live.rate,
                live.eta_seconds,
                tries,
                None,
                live.standstill_seconds,
            )
        done, total = _counted(place, last)
    except XgrayError as error:
        return StageState(place.label, "damaged", 0, None, None, None, None, tries, str(error))
    if holder:
        return StageState(place.label, "waiting", done, total, None, None, None, tries, None)
    failed = last is not None and last.end is not None and last.end.startswith("failed: ")
    reason = None if last is None else last.end or "killed: the log of the last attempt has no end"
    state = "failed" if failed else "stopped"
    return StageState(
        place.label, state, done, total, None, None, None, tries, reason if reason != "finished" else None
    )


def _unit(place: StageFolder) -> int | None:
    """A stage that is not counted in prompts or steps is one thing to do."""
    return 1 if place.model is None else None


def _finished(place: StageFolder, manifest: dict[str, Any], tries: int) -> StageState:
    counts = manifest["counts"]
    done = training_steps(place)[0] if place.stage == "train" else counts.get("num_prompts", 1)
    return StageState(place.label, "done", done, done, counts.get("num_errors", 0), None, None, tries, None)


def _live(place: StageFolder, holder: Holder) -> Progress | None:
    """What the driver says of the stage; of its last part where it has several."""
    told = [one for label, one in holder.progress.items() if label.partition(":")[0] == place.label]
    return told[-1] if told else None


def _counted(place: StageFolder, last: Attempt | None) -> tuple[int, int | None]:
    if place.stage == "train":
        done, total = training_steps(place)
        return done, total or None
    if place.stage == "intervene":
        scored = place.folder / "score"
        return sum((scored / name / "rows").count_rows() for name in scored.names()), last.total if last else None
    if place.model is None:
        return 0, 1
    return place.rows.count_rows(), last.total if last else None
