"""Sum up how well a training used its machine, from the lines of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("data", "forward", "backward", "optimizer")
"""The phases whose seconds a step's line gives as ``{phase}_seconds``."""

Row = Mapping[str, Any]


def training_numbers(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the training's padding share, MFU, peak memory and seconds by phase, as far as the lines give them.

    The padding share is that of all computed positions, and the MFU that of all seconds within steps. No second counts
    in two phases: ``backward`` is without the waiting for other workers, ``communication``, and ``other`` is what the
    steps took beside their phases.

    Args:
        rows: The lines of ``metrics.jsonl``, whatever version wrote them.
    """
    steps = [row for row in rows if "computed_tokens" in row]
    if not steps:
        return {}
    computed_tokens = sum(row["computed_tokens"] for row in steps)
    padding_tokens = sum(row["padding_share"] * row["computed_tokens"] for row in steps)
    numbers: dict[str, Any] = {"padding_share": padding_tokens / computed_tokens}
    with_mfu = [row for row in steps if "mfu" in row]
    if with_mfu:
        with_seconds = sum(row["seconds"] for row in with_mfu)
        numbers["mfu"] = sum(row["mfu"] * row["seconds"] for row in with_mfu) / with_seconds
    numbers["peak_memory_bytes"] = int(max(row["peak_memory_bytes"] for row in steps))
    seconds = {phase: sum(row[f"{phase}_seconds"] for row in steps) for phase in PHASES}
    other = sum(row["seconds"] for row in steps) - sum(seconds.values())
    # A step's line has the waiting within the backward pass before it; added up, the difference is one pass.
    communication = sum(row.get("communication_seconds", 0.0) for row in steps)
    seconds["backward"] -= communication
    seconds |= {"communication": communication, "other": other}
    seconds["validation"] = sum(row.get("eval_seconds", 0.0) for row in rows)
    seconds["checkpoint"] = sum(row.get("checkpoint_seconds", 0.0) for row in rows)
    return numbers | {"phase_seconds": {phase: round(value, 3) for phase, value in seconds.items() if value > 0}}
