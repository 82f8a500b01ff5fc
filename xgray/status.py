"""What of a run is done, from its files alone: it can be asked on any machine that reads them, at any time."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from xgray.config import BASE, Experiment, validate
from xgray.errors import InputError
from xgray.prompt_file import PROMPTS, PromptFile
from xgray.runs import PENDING, StageFolder
from xgray.storage import Folder

RUNNING_SECONDS = 120.0
"""A stage whose folder changed no longer ago than this counts as running."""


@dataclass(frozen=True)
class StageState:
    label: str
    state: str
    """``done``, ``running``, ``stopped`` (begun, nothing written of late) or ``missing``."""
    num_done: int
    num_total: int | None
    """Prompts, or optimizer steps of a training; None where it is not known yet."""
    rate: float | None
    """Prompts or steps a second since the stage's first block, over what is on disk."""
    eta_seconds: float | None


def load_run(run: Folder) -> Experiment:
    """The experiment of a run directory, as it was resolved.

    Raises:
        InputError: there is no run here.
    """
    import yaml

    if not run.exists("experiment.yaml"):
        raise InputError(f"{run.uri}: no run here (experiment.yaml is missing)")
    values: dict[str, Any] = yaml.safe_load(run.read_bytes("experiment.yaml"))
    experiment: Experiment = validate(Experiment, values, f"{run.uri}/experiment.yaml")
    return experiment


def run_states(run: Folder) -> list[StageState]:
    """The state of every stage of the run, in the order in which they run.

    Raises:
        InputError: there is no run here.
    """
    experiment = load_run(run)
    num_prompts = len(PromptFile(run)) if run.exists(PROMPTS) else None
    states = []
    for variant in experiment.variants:
        if variant.checkpoint is None:
            place = StageFolder(run / "train" / variant.name, "train", variant.name)
            states.append(_state(place, *training_steps(place)))
    for stage in ("generate", "score"):
        for model in [BASE, *(variant.name for variant in experiment.variants)]:
            place = StageFolder(run / stage / model, stage, model)
            states.append(_state(place, count_rows(place.rows), num_prompts))
    for stage in ("evaluate", "report"):
        place = StageFolder(run / stage, stage)
        done = int(place.manifest() is not None)
        states.append(_state(place, done, 1))
    return states


def training_steps(place: StageFolder) -> tuple[int, int]:
    """Optimizer steps done and in all, as the trainer's ``metrics.jsonl`` says; zeros before it starts."""
    if not place.folder.exists("metrics.jsonl"):
        return 0, 0
    done = total = 0
    for line in place.folder.read_bytes("metrics.jsonl").decode().split("\n"):
        try:
            record = json.loads(line) if line else {}
        except json.JSONDecodeError:
            continue  # the line that is being written
        total = record.get("total_steps", total)
        done = max(done, record.get("step", 0))
    return done, total


def count_rows(rows: Folder) -> int:
    """Rows in the finished Parquet files of a folder, from their footers."""
    import pyarrow as pa

    return rows.read_parquet(pa.schema([("prompt_id", pa.string())]), columns=["prompt_id"]).num_rows


def _state(place: StageFolder, done: int, total: int | None) -> StageState:
    if place.manifest() is not None:
        return StageState(place.label, "done", done, done if place.stage == "train" else total, None, None)
    if not place.folder.exists(PENDING):
        return StageState(place.label, "missing", 0, total or None, None, None)
    first, last = place.folder.modified() or (0.0, 0.0)
    running = time.time() - last < RUNNING_SECONDS
    rate = done / (last - first) if done and last > first else None
    eta = (total - done) / rate if running and rate and total else None
    return StageState(place.label, "running" if running else "stopped", done, total or None, rate, eta)
