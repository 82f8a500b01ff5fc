"""Progress on the terminal: bars where somebody looks, plain lines in a log. Always on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_SECONDS = 15.0
"""Between two lines of one stage, where the output is no terminal."""


class ProgressDisplay:
    """Shows what stages report; use as a context manager and call with a label, what is done, and the total."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        if self._console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, total=total or None)
            self._bars.update(self._tasks[label], completed=done, total=total or None)
            return
        now = time.monotonic()
        finished = total > 0 and done >= total
        if finished and self._printed.get(label) == float("inf"):
            return
        if finished or now - self._printed.get(label, -LINE_SECONDS) >= LINE_SECONDS:
            self._printed[label] = float("inf") if finished else now
            self._console.print(f"{time.strftime('%H:%M:%S')} {label} {done}/{total or '?'}", highlight=False)
