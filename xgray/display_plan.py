"""What ``xgray plan`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from xgray.display_scores import CONSOLE

if TYPE_CHECKING:
    from xgray.estimate import Estimate
    from xgray.estimate_stages import Line


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above one or so: ``12 s``, ``3.4 min``, ``5.0 h``, ``9.8 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(unit > 1)}f} {name}"
    return f"{seconds / 86400:,.1f} days"


def print_plan(name: str, told: Estimate) -> None:
    """The table, and below it where its numbers come from."""
    CONSOLE.print(f"{name}: what is left to do", style="italic")
    columns = ["stage", "done", "left", "texts", "prompt tokens", "new tokens", "requests", "time", "GPU-hours"]
    if told.money is not None:
        columns.append(f"money{f', {told.currency}' if told.currency else ''}")
    table = Table()
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    for at, line in enumerate(told.lines):
        table.add_row(*_cells(line), end_section=at == len(told.lines) - 1 and not told.saved_seconds)
    if told.saved_seconds:
        saved = [""] * len(columns)
        saved[0], saved[7] = "generate and score overlap", f"-{duration(told.saved_seconds)}"
        table.add_row(*saved, end_section=True)
    total = [""] * len(columns)
    total[0], total[7], total[8] = "all", duration(told.seconds), f"{told.gpu_hours:,.2f}"
    if told.money is not None:
        total[9] = f"{told.money:,.2f}"
    table.add_row(*total)
    CONSOLE.print(table)
    stages: dict[str, dict[str, None]] = {}
    for line in told.lines:
        if line.source:
            stages.setdefault(line.source, {})[line.stage.partition("/")[0]] = None
    for source, own in stages.items():
        CONSOLE.print(f"{', '.join(own)}: {source}", soft_wrap=True)
    for note in told.notes:
        CONSOLE.print(f"- {note}", soft_wrap=True)


def _cells(line: Line) -> list[str]:
    unit = line.unit.removesuffix("s") if line.num_left == 1 else line.unit
    cells = [
        line.stage,
        f"{line.num_done:,}" if line.num_done else "",
        f"{line.num_left:,} {unit}" if line.num_left else "nothing",
        f"{line.num_completions:,}" if line.num_completions else "",
        "" if line.prompt_tokens is None else f"{line.prompt_tokens:,}",
        f"{line.new_tokens:,}" if line.new_tokens else "",
        f"{line.num_requests:,}" if line.num_requests else "",
        ("not estimated" if line.seconds is None else duration(line.seconds)) if line.num_left else "",
        f"{line.gpu_hours:,.2f}" if line.gpu_hours else "",
    ]
    return cells if line.money is None else [*cells, f"{line.money:,.2f}" if line.money else ""]
