"""``metrics.jsonl``: one line for each optimizer step and each validation.

The first line is ``{"total_steps": N}``. A line with ``loss`` is a step, one with ``eval_loss`` a validation after that
step. Resuming drops the lines after the checkpoint's step, so none is there twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"

Row = dict[str, float]


def read_metrics(path: Path) -> list[Row]:
    """The steps and validations in the file, in order; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [row for row in map(json.loads, lines) if "step" in row]


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """What a training's manifest says of its rows; nothing of validations where there were none."""
    steps = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "eval_loss" in row]
    tokens, seconds = sum(row["tokens"] for row in steps), sum(row["seconds"] for row in steps)
    summary: dict[str, Any] = {
        "steps": len(steps),
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
    return summary
