"""Read how far a training has come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xgray.runs.manifest import StageFolder


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training has come, from the trainer's ``metrics.jsonl``."""

    done: int = 0
    """Optimizer steps; 0 before the training starts, as in :attr:`total`."""
    total: int = 0
    last_step: Mapping[str, Any] | None = None
    """The line of the last step; None before the first."""


def read_training_steps(place: StageFolder) -> tuple[int, int]:
    """Return the optimizer steps done and in all, from the trainer's ``metrics.jsonl``; zeros before it starts."""
    progress = read_training_progress(place)
    return progress.done, progress.total


def read_training_progress(place: StageFolder) -> TrainingProgress:
    """Return how far a training has come."""
    if not place.folder.exists("metrics.jsonl"):
        return TrainingProgress()
    done = total = 0
    last_step = None
    for line in place.folder.read_bytes("metrics.jsonl").decode(errors="replace").split("\n"):
        try:
            record = json.loads(line) if line else {}
        except (ValueError, RecursionError):
            continue  # a line that is being written
        if isinstance(record, dict):
            total = _number(record.get("total_steps"), total)
            done = max(done, _number(record.get("step"), 0))
            last_step = record if "loss" in record else last_step
    return TrainingProgress(done, total, last_step)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
