"""Keep a log of every attempt at a stage: ``{stage}/[{model}/]logs/attempt-0001.log``.

A log says where the attempt ran, with what command and versions, what our loggers and Python's warnings said, and in
its last line how the attempt ended. If that line is missing, the attempt was killed or still runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xgray.errors import XgrayError
from xgray.rows import utc_now
from xgray.runs import interrupts
from xgray.runs.manifest import LOGS, StageFolder
from xgray.runs.progress import Meter, Progress
from xgray.runs.provenance import provenance
from xgray.runs.secrets import redact
from xgray.storage.folder import Folder

FLUSH_SECONDS = 5.0
"""Seconds between two writes of a log that has new lines; it is written whole, as an object store cannot append."""

_FILE_NAME = re.compile(r"attempt-(\d+)\.log")
_PROGRESS_LINE = re.compile(r"^\S+ (\d+)/(\d+) done", re.MULTILINE)
_END_LINE = re.compile(r"^\S+ ended: (.*)$")


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a stage, as its log says."""

    number: int
    """The number of attempts at the stage so far."""
    end: str | None
    """``finished``, or why the attempt ended otherwise; None if it was killed or still runs."""
    total: int | None
    """Prompts or steps that the finished stage would have; None if the log does not say."""


def last_attempt(folder: Folder) -> Attempt | None:
    """Return the last attempt at the stage of this folder; None if there was no attempt."""
    logs = folder / LOGS
    number = _last_number(logs)
    if not number:
        return None
    text = logs.read_bytes(_file_name(number)).decode(errors="replace")
    progress = _PROGRESS_LINE.findall(text)
    end = _END_LINE.match(text.rstrip("\n").rpartition("\n")[2])
    return Attempt(number, end[1] if end else None, int(progress[-1][1]) or None if progress else None)


def _file_name(number: int) -> str:
    return f"attempt-{number:04}.log"


def _last_number(logs: Folder) -> int:
    """Return the highest number of a log in this folder; 0 if there is no log."""
    matches = (_FILE_NAME.fullmatch(name) for name in logs.names(".log"))
    return max((int(match[1]) for match in matches if match), default=0)


@contextlib.contextmanager
def log_attempt(stages: Sequence[StageFolder], meter: Meter) -> Iterator[None]:
    """While the block runs, log an attempt at these stages, which are computed together.

    Args:
        meter: Knows the stages' progress, which is logged too.
    """
    handler = _AttemptHandler(stages, meter)
    root = logging.getLogger()
    root.addHandler(handler)
    _capture_warnings(1)
    end = "finished"
    try:
        yield
    except KeyboardInterrupt:
        end = interrupts.reason()
        raise
    except BaseException as error:
        handler.write(traceback.format_exc().rstrip())
        kind = "" if isinstance(error, XgrayError) else f"{type(error).__name__}: "
        end = f"failed: {kind}{' '.join(str(error).split())}"
        raise
    finally:
        _capture_warnings(-1)
        root.removeHandler(handler)
        handler.end(end)


_capturing = threading.Lock()
_num_capturing = 0
"""Attempts that are being logged, several of which may run at once."""


def _capture_warnings(change: int) -> None:
    """Have Python's warnings logged while at least one attempt is."""
    global _num_capturing
    with _capturing:
        _num_capturing += change
        logging.captureWarnings(_num_capturing > 0)


class _AttemptHandler(logging.Handler):
    """Writes log records and the stages' progress into one log file per stage."""

    def __init__(self, stages: Sequence[StageFolder], meter: Meter) -> None:
        super().__init__()
        formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)
        self._meter = meter
        self._files = [_LogFile(stage) for stage in stages]
        for line in _first_lines():
            self.write(line)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._flush_repeatedly, daemon=True)
        self._flush()
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))

    def write(self, line: str) -> None:
        for file in self._files:
            file.lines.append(redact(line))

    def end(self, reason: str) -> None:
        """Write the last line and stop writing."""
        self._has_ended.set()
        self._thread.join()
        self._log_progress()
        self.write(f"{utc_now()} ended: {reason}")
        self._flush()

    def _flush_repeatedly(self) -> None:
        while not self._has_ended.wait(FLUSH_SECONDS):
            if any(file.last_progress is None for file in self._files):
                self._log_progress()
            self._flush()

    def _log_progress(self) -> None:
        """Log how much of each stage is done: as soon as it is known, and at the end."""
        progress = self._meter.progress()
        for file in self._files:
            if file.label in progress:
                file.log_progress(progress[file.label])

    def _flush(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # A stage goes on even if its log cannot be written.
                file.flush()


def _first_lines() -> Iterator[str]:
    """Yield the lines that every log begins with."""
    facts = provenance()
    yield f"{utc_now()} began: host {socket.gethostname()}, process {os.getpid()}"
    yield f"command: {' '.join(facts['argv'])}"
    yield f"versions: {', '.join(f'{name} {version}' for name, version in facts['versions'].items())}"
    if facts["git"]:
        yield f"commit: {facts['git']['commit']}{' with changes' if facts['git']['dirty'] else ''}"


class _LogFile:
    """The lines of one stage's log, and how many of them are written."""

    def __init__(self, stage: StageFolder) -> None:
        self._folder = stage.folder / LOGS
        number = _last_number(self._folder) + 1
        self._name = _file_name(number)
        self.label = stage.label
        self.lines = [f"{stage.label}, attempt {number}"]
        self.last_progress: tuple[int, int] | None = None
        """Done and total when progress was last logged."""
        self._num_written = 0

    def log_progress(self, progress: Progress) -> None:
        """Add a line about the stage's progress if it has changed."""
        if (progress.done, progress.total) == self.last_progress:
            return
        self.last_progress = progress.done, progress.total
        new = progress.done - progress.begun_with
        rate = f", {progress.rate:.2f}/s" if progress.rate else ""
        self.lines.append(f"{utc_now()} {progress.done}/{progress.total} done, {new} of them in this attempt{rate}")

    def flush(self) -> None:
        num_lines = len(self.lines)
        if num_lines > self._num_written:
            self._folder.write_bytes(self._name, ("\n".join(self.lines[:num_lines]) + "\n").encode())
            self._num_written = num_lines
