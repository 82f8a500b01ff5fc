"""``metrics.jsonl``: one line for each optimizer step and each validation.

The first line is ``{"total_steps": N}``. A line with ``loss`` is a step, one with ``eval_loss`` a validation after that
step; ``elapsed`` is in seconds since the attempt that made it began its steps. Resuming drops the lines after the
checkpoint's step, so none is there twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"

Row = dict[str, float]


def read_metrics(path: Path) -> list[Row]:
    """The steps and validations in the file, in order; a last line that was cut off by a kill is left out."""
    return [row for row in _lines(path) if "step" in row]


def parse_metrics(text: str) -> list[Row]:
    """As :func:`read_metrics`, of what the file holds."""
    return [row for row in _parse(text) if "step" in row]


def summarize(path: Path) -> dict[str, Any]:
    """What a training's manifest says of its file; nothing of validations where there were none."""
    rows = _lines(path)
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
    return summary


def _lines(path: Path) -> list[Row]:
    return _parse(path.read_text(encoding="utf-8")) if path.exists() else []


def _parse(text: str) -> list[Row]:
    return [json.loads(line) for line in text.split("\n")[:-1]]
