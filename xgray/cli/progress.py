"""Progress on the terminal: bars where somebody looks, plain lines in a log. Always on stderr."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from xgray.runs.progress import Meter, duration

LINE_SECONDS = 15.0
"""Between two lines of one stage, where the output is no terminal."""


@dataclass(frozen=True)
class _Line:
    """The last one of a stage in a log."""

    done: int
    seconds: float


class ProgressDisplay:
    """Shows what stages report; use as a context manager and call with a label, what is done, and the total."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}"),
            console=self._console,
        )
        self._meter = Meter()
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, _Line] = {}

    def __enter__(self) -> ProgressDisplay:
        if self._console.is_terminal:
            self._bars.start()
            _log_to_stderr()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()
            _log_to_stderr()
            return
        for label, now in self._meter.progress().items():
            if label not in self._printed or now.done != self._printed[label].done:
                self._print(label, now.done, now.total)  # how far a stage came that was stopped between two lines

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None:
        self._meter(label, done, total, errors)
        if self._console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(label, pace="")
            self._bars.update(self._tasks[label], completed=done, total=total or None, pace=self._pace(label))
            return
        before = self._printed.get(label)
        finished = total > 0 and done >= total
        if before is not None and finished and before.done >= total:
            return
        if before is None or finished or time.monotonic() - before.seconds >= LINE_SECONDS:
            self._print(label, done, total)

    def _print(self, label: str, done: int, total: int) -> None:
        self._printed[label] = _Line(done, time.monotonic())
        line = f"{time.strftime('%H:%M:%S')} {label} {done}/{total or '?'} {self._pace(label)}"
        self._console.print(line.rstrip(), highlight=False, soft_wrap=True)

    def _pace(self, label: str) -> str:
        """Rate, time left or a standstill, and errors, as far as there are any: ``3.20/s, 12 min left, 1 error``."""
        now = self._meter.progress()[label]
        parts = []
        if now.rate:
            parts.append(f"{now.rate:.2f}/s")
        if now.standstill_seconds:
            parts.append(f"no progress for {duration(now.standstill_seconds)}")
        elif now.eta_seconds:
            parts.append(f"{duration(now.eta_seconds)} left")
        if now.errors:
            parts.append(f"{now.errors} error{'s' if now.errors > 1 else ''}")
        return ", ".join(parts)


def _log_to_stderr() -> None:
    """Logging has kept the stderr of its set-up; while there are bars it is another one, which prints above them."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
