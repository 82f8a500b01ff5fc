"""Progress on the terminal: a bar for each stage where somebody looks, plain lines in a log. Always on stderr.

A label is that of a stage, ``train/dpo``, or of one of its phases, ``train/dpo: loading weights``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from xgray.runs.periodic import run_every
from xgray.runs.progress import Meter, duration, rate_unit

LINE_SECONDS = 15.0
"""The shortest time between two lines of one label in a log; longer where more than three stages run at once."""
SILENCE_SECONDS = 60.0
"""A log that is silent for longer gets a line that says what is running."""
WIDE = 130
"""A terminal of fewer columns than this has short bars, so that the names of several trainings stay whole."""
STARTING = "starting"
"""The label until the first stage reports."""


@dataclass
class _Logged:
    """What was last printed of a label in a log."""

    done: int
    seconds: float


class _LabelColumn(TextColumn):
    """The names of the stages; where the line is too short for all, they lose their ends, and no number does."""

    def __init__(self) -> None:
        super().__init__("{task.description:<24}", markup=False, table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class ProgressDisplay:
    """Shows what stages report: use it as a context manager, and call it with a label, what is done, and the total."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._bars = Progress(
            _LabelColumn(),
            BarColumn(bar_width=40 if self._console.width >= WIDE else 6),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=self._console,
        )
        self._meter = Meter()
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, _Logged] = {}
        self._began: dict[str, float] = {}
        self._current = STARTING
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> ProgressDisplay:
        self._began[STARTING] = time.monotonic()
        if self._console.is_terminal:
            self._bars.start()
            _log_to_stderr()
            self._tasks[STARTING] = self._bars.add_task(STARTING, total=None, count="", pace="")
        else:
            self._logged[STARTING] = _Logged(0, time.monotonic())
            self._exit.enter_context(run_every(1.0, self._break_silence))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        if self._console.is_terminal:
            self._remove_starting()
            self._bars.stop()
            _log_to_stderr()
            return
        for label, progress in self._meter.progress().items():
            if label not in self._logged or progress.done != self._logged[label].done:
                self._log(label, progress.done, progress.total)  # how far a stage came that stopped between two lines

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None:
        with self._lock:
            self._meter(label, done, total, errors)
            self._began.setdefault(label, time.monotonic())
            self._current = label
            if self._console.is_terminal:
                self._show(label, done, total)
            else:
                self._log_if_due(label, done, total)

    def _show(self, label: str, done: int, total: int) -> None:
        """Update the bar of the label's stage, which shows the phase that the stage is in."""
        self._remove_starting()
        stage = label.partition(": ")[0]
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(label, count="", pace="")
        count, pace = _count(done, total), self._pace(label)
        task = self._tasks[stage]
        self._bars.update(task, description=label, completed=done, total=total or None, count=count, pace=pace)

    def _remove_starting(self) -> None:
        task = self._tasks.pop(STARTING, None)
        if task is not None:
            self._bars.remove_task(task)

    def _log_if_due(self, label: str, done: int, total: int) -> None:
        """Print a line for a label that is new, has finished, or was last printed long enough ago."""
        last = self._logged.get(label)
        is_finished = total > 0 and done >= total
        if last is not None and is_finished and last.done >= total:
            return
        pause = LINE_SECONDS * max(1, self._num_running() // 2)
        if last is None or is_finished or time.monotonic() - last.seconds >= pause:
            self._log(label, done, total)

    def _num_running(self) -> int:
        """Return how many stages have reported something that is not finished: several trainings run at once."""
        unfinished = [label for label, progress in self._meter.progress().items() if progress.done < progress.total]
        return len({label.partition(": ")[0] for label in unfinished})

    def _break_silence(self) -> None:
        """Print a line for the label that reported last, if the log has been silent for long and it is not finished."""
        with self._lock:
            silence = time.monotonic() - max(logged.seconds for logged in self._logged.values())
            progress = self._meter.progress().get(self._current)
            done, total = (progress.done, progress.total) if progress else (0, 0)
            is_finished = total > 0 and done >= total
            if silence >= (LINE_SECONDS if self._current == STARTING else SILENCE_SECONDS) and not is_finished:
                self._log(self._current, done, total)

    def _log(self, label: str, done: int, total: int) -> None:
        self._logged[label] = _Logged(done, time.monotonic())
        parts = [time.strftime("%H:%M:%S"), label, _count(done, total), self._pace(label)]
        self._console.print(" ".join(part for part in parts if part), soft_wrap=True)

    def _pace(self, label: str) -> str:
        """Rate, time left or a standstill, and errors, as far as there are any: ``3.20/s, 12.0 min left, 1 error``.

        Without a rate, the time since the label began: ``for 45 s``.
        """
        progress = self._meter.progress().get(label)
        elapsed = time.monotonic() - self._began.get(label, time.monotonic())
        is_finished = progress is not None and progress.total > 0 and progress.done >= progress.total
        parts = []
        if progress and progress.rate:
            parts.append(f"{progress.rate:.2f}{rate_unit(label)}")
        elif not is_finished and elapsed >= 1 and not self._console.is_terminal:  # the bars have a clock
            parts.append(f"for {duration(elapsed)}")
        if progress and progress.standstill_seconds:
            parts.append(f"no progress for {duration(progress.standstill_seconds)}")
        elif progress and progress.eta_seconds:
            parts.append(f"{duration(progress.eta_seconds)} left")
        if progress and progress.errors:
            parts.append(f"{progress.errors} error{'s' if progress.errors > 1 else ''}")
        return ", ".join(parts)


def _count(done: int, total: int) -> str:
    """``40/302``, ``40`` where the total is not known, and nothing before anything is done of it."""
    return f"{done}/{total}" if total else str(done or "")


def _log_to_stderr() -> None:
    """Let logging write to the present ``sys.stderr``: while bars are shown it is one that prints above them."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
