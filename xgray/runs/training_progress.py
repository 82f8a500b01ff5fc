"""Read how many optimizer steps a training has done."""

from __future__ import annotations

import json

from xgray.runs.manifest import StageFolder


def read_training_steps(place: StageFolder) -> tuple[int, int]:
    """Return the optimizer steps done and in all, from the trainer's ``metrics.jsonl``; zeros before it starts."""
    if not place.folder.exists("metrics.jsonl"):
        return 0, 0
    done = total = 0
    for line in place.folder.read_bytes("metrics.jsonl").decode(errors="replace").split("\n"):
        try:
            record = json.loads(line) if line else {}
        except (ValueError, RecursionError):
            continue  # a line that is being written
        if isinstance(record, dict):
            total = _number(record.get("total_steps"), total)
            done = max(done, _number(record.get("step"), 0))
    return done, total


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
