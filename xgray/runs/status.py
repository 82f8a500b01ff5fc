"""Read the state of a run from its files alone, on any machine that sees them, at any time.

A driver that is alive writes into its lease how far it is and how fast; finished stages say it in their manifests.
Files are counted only for stages that were begun and left. File times are never looked at: clocks differ, and jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from xgray.config.stages import Stage, stages_of
from xgray.errors import XgrayError
from xgray.runs.attempt_log import Attempt, last_attempt
from xgray.runs.lease import Driver, find_driver
from xgray.runs.manifest import PENDING, StageFolder
from xgray.runs.progress import Progress
from xgray.runs.prompts import PROMPTS, PromptFile
from xgray.runs.resolved import load_run
from xgray.runs.training_progress import read_training_steps
from xgray.storage.folder import Folder


@dataclass(frozen=True)
class StageState:
    """How far one stage is, for one model where the stage has several."""

    label: str
    state: str
    """``done``, ``running``, ``waiting`` (a driver is alive and will run it), ``failed``, ``stopped`` (begun and left),
    ``damaged`` or ``missing``."""
    num_done: int
    num_total: int | None
    """Prompts, or optimizer steps of a training; None where it is not known yet."""
    num_errors: int | None
    """Prompts with an error or a missing score: all of them where the stage is done, those of this attempt where it is
    running; None where they have not been counted."""
    rate: float | None
    """Prompts or steps per second of the running attempt."""
    eta_seconds: float | None
    num_attempts: int
    error: str | None
    """How the last attempt ended, if not well."""
    standstill_seconds: float | None = None
    """Seconds without progress by the driver's clock, where they are more than usual."""


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    run: str
    driver: str | None
    """The driver's host, process, start and last sign of life."""
    driver_alive: bool
    stages: list[StageState]


def run_state(run: Folder) -> RunState:
    """Return the state of every stage of the run, in the order in which they run.

    Raises:
        InputError: there is no run in this folder.
    """
    experiment = load_run(run)
    holder, is_alive = find_driver(run) or (None, False)
    stages = [
        (stage, StageFolder(run / stage.name / model if model else run / stage.name, stage.name, model))
        for stage, model in stages_of(experiment)
    ]
    states = [_state(stage, place, holder if is_alive else None) for stage, place in stages]
    streamed = [state for (stage, _), state in zip(stages, states, strict=True) if stage.stream]
    total = _num_prompts(streamed, run)
    states = [
        replace(state, num_total=total) if state in streamed and state.num_total is None else state for state in states
    ]
    return RunState(run.uri, str(holder) if holder else None, is_alive, states)


def _num_prompts(streamed: Sequence[StageState], run: Folder) -> int | None:
    """Return the number of prompts, which is the same for all models, or None where it is not known."""
    known = [state.num_total for state in streamed if state.num_total is not None]
    if len(known) < len(streamed) and run.exists(PROMPTS):
        return len(PromptFile(run))
    return max(known, default=None)


def _state(stage: Stage, place: StageFolder, holder: Driver | None) -> StageState:
    """Return the state of one stage; ``holder`` is the driver if it is alive."""
    last = last_attempt(place.folder)
    state = StageState(place.label, "missing", 0, None, None, None, None, last.number if last else 0, None)
    try:
        manifest = place.manifest()
        if manifest is not None:
            return _finished(stage, place, manifest, state)
        if not place.folder.exists(PENDING):
            return replace(state, num_total=None if place.model else 1)
        if holder and (progress := _progress(place, holder)):
            return replace(
                state,
                state="running",
                num_done=progress.done,
                num_total=progress.total or None,
                num_errors=progress.errors,
                rate=progress.rate,
                eta_seconds=progress.eta_seconds,
                standstill_seconds=progress.standstill_seconds,
            )
        num_done, num_total = _counted(stage, place, last)
    except XgrayError as error:
        return replace(state, state="damaged", error=str(error))
    state = replace(state, num_done=num_done, num_total=num_total)
    if holder:
        return replace(state, state="waiting")
    if last is None:
        return replace(state, state="stopped")
    has_failed = last.end is not None and last.end.startswith("failed: ")
    end = last.end or "killed: the log of the last attempt has no end"
    return replace(state, state="failed" if has_failed else "stopped", error=end if end != "finished" else None)


def _finished(stage: Stage, place: StageFolder, manifest: dict[str, Any], state: StageState) -> StageState:
    counts = manifest["counts"]
    num_done = read_training_steps(place)[0] if stage.progress == "steps" else counts.get("num_prompts", 1)
    return replace(state, state="done", num_done=num_done, num_total=num_done, num_errors=counts.get("num_errors", 0))


def _progress(place: StageFolder, holder: Driver) -> Progress | None:
    """Return what the driver reports of the stage; of its last part (``evaluate: fluency``) where it has several."""
    parts = [progress for label, progress in holder.progress.items() if label.partition(":")[0] == place.label]
    return parts[-1] if parts else None


def _counted(stage: Stage, place: StageFolder, last: Attempt | None) -> tuple[int, int | None]:
    """Count what an unfinished stage has on disk: how much is done, and of how much where the last attempt said so."""
    total = last.total if last else None
    if stage.progress == "steps":
        done, steps = read_training_steps(place)
        return done, steps or None
    if stage.progress == "settings":
        scored = place.folder / "score"
        return sum((scored / name / "rows").count_rows() for name in scored.names()), total
    if stage.progress == "rows":
        return place.rows.count_rows(), total
    return 0, total if place.model else 1
