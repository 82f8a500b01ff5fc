"""Read ``metrics.jsonl``, which has a line for each optimizer step and each validation of a training.

The first line is ``{"total_steps": N}``. A line with ``loss`` is a step, a line with ``eval_loss`` a validation after
that step, and a line with ``checkpoint_seconds`` a checkpoint after it, which older files lack. ``elapsed`` counts
seconds since the first step of the attempt that wrote the line. When a training resumes, lines after the checkpoint's
step are deleted, so no step occurs twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xgray.runs.training_numbers import training_numbers
from xgray.storage.folder import Folder, naming_file

METRICS = "metrics.jsonl"

Row = dict[str, float]


def begin_metrics(path: Path, total_steps: int, step: int) -> None:
    """Write the first line of the file, and keep the lines in it up to the step that training begins or resumes from.

    Args:
        path: the file.
        total_steps: optimizer steps of the whole training.
        step: the last step that counts; 0 for a training that begins.
    """
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in [{"total_steps": total_steps}, *kept])
    Folder(str(path.parent)).write_bytes(path.name, text.encode())


def append_metrics(path: Path, row: Mapping[str, float | None]) -> None:
    """Add a line to the file."""
    with naming_file(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[Row]:
    """Return the file's steps and validations in order; empty without a file.

    A last line that a kill has cut off is left out.
    """
    return [row for row in _read_lines(path) if "step" in row]


def parse_metrics(text: str) -> list[Row]:
    """Return what :func:`read_metrics` returns, from the file's content."""
    return [row for row in _parse_lines(text) if "step" in row]


def summarize(path: Path) -> dict[str, Any]:
    """Return what the manifest of a training records about its metrics.

    ``step_seconds`` is the median. The entries about validations are missing where nothing was held out; see
    :func:`xgray.runs.training_numbers.training_numbers` for those that older files do not give.
    """
    rows = _read_lines(path)
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "eval_loss" in row]
    tokens, seconds = sum(row["tokens"] for row in steps), sum(row["seconds"] for row in steps)
    summary: dict[str, Any] = {
        "steps": len(steps),
        "stopped_early": len(steps) < rows[0]["total_steps"],
        "tokens": int(tokens),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "step_seconds": sorted(row["seconds"] for row in steps)[len(steps) // 2],
        "tokens_per_second": tokens / seconds,
    }
    if validations:
        best = min(validations, key=lambda row: row["eval_loss"])
        summary |= {
            "last_eval_loss": validations[-1]["eval_loss"],
            "best_eval_loss": best["eval_loss"],
            "best_step": int(best["step"]),
        }
    return summary | training_numbers(rows)


def _read_lines(path: Path) -> list[Row]:
    return _parse_lines(path.read_text(encoding="utf-8")) if path.exists() else []


def _parse_lines(text: str) -> list[Row]:
    return [json.loads(line) for line in text.split("\n")[:-1]]
