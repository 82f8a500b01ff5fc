"""The log of every attempt at a stage: ``{stage}/[{model}/]logs/attempt-0001.log``.

It says who tried and with what command and versions, what our loggers and Python's warnings said meanwhile, and in its
last line how the attempt ended. A log without such a line is that of an attempt that was killed, or goes on.
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
from xgray.runs.progress import Meter
from xgray.runs.provenance import provenance
from xgray.runs.secrets import redact
from xgray.storage.folder import Folder

FLUSH_SECONDS = 5.0
"""Between two writings of a log, where there is something new; whole, as an object store cannot append."""

_NAME = re.compile(r"attempt-(\d+)\.log")
_AMOUNT = re.compile(r"^\S+ (\d+)/(\d+) done", re.MULTILINE)
_END = re.compile(r"^\S+ ended: (.*)$")


@dataclass(frozen=True)
class Attempt:
    """The last attempt at a stage, as its log tells."""

    number: int
    """Counted from 1: how often the stage was tried."""
    end: str | None
    """``finished``, or why it ended otherwise; None where the log does not say, so that it was killed or goes on."""
    total: int | None
    """Prompts or steps that it set out to have in the end."""


def last_attempt(folder: Folder) -> Attempt | None:
    """What the newest log of a stage's folder says; None where the stage was never tried."""
    logs = folder / LOGS
    number = _newest(logs)
    if not number:
        return None
    text = logs.read_bytes(f"attempt-{number:04}.log").decode(errors="replace")
    amounts = _AMOUNT.findall(text)
    end = _END.match(text.rstrip("\n").rpartition("\n")[2])
    return Attempt(number, end[1] if end else None, int(amounts[-1][1]) or None if amounts else None)


def _newest(logs: Folder) -> int:
    found = [_NAME.fullmatch(name) for name in logs.names(".log")]
    return max((int(one[1]) for one in found if one), default=0)


@contextlib.contextmanager
def log_attempt(places: Sequence[StageFolder], meter: Meter) -> Iterator[None]:
    """Keep the logs of one attempt at these stages, which are worked on together, for the length of the block."""
    own = _AttemptLog(places, meter)
    root = logging.getLogger()
    root.addHandler(own)
    logging.captureWarnings(True)
    end = "finished"
    try:
        yield
    except KeyboardInterrupt:
        end = interrupts.reason()
        raise
    except BaseException as error:
        own.write(traceback.format_exc().rstrip())
        kind = "" if isinstance(error, XgrayError) else f"{type(error).__name__}: "
        end = f"failed: {kind}{' '.join(str(error).split())}"
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(own)
        own.end(end)


class _AttemptLog(logging.Handler):
    def __init__(self, places: Sequence[StageFolder], meter: Meter) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
        if self.formatter:
            self.formatter.converter = time.gmtime
        self._meter = meter
        self._texts: list[_Text] = []
        told = provenance()
        head = [
            f"{utc_now()} began: host {socket.gethostname()}, process {os.getpid()}",
            f"command: {' '.join(told['argv'])}",
            f"versions: {', '.join(f'{name} {version}' for name, version in told['versions'].items())}",
            f"commit: {told['git']['commit']}{' with changes' if told['git']['dirty'] else ''}" if told["git"] else "",
        ]
        for place in places:
            logs = place.folder / LOGS
            number = _newest(logs) + 1
            text = _Text(logs, f"attempt-{number:04}.log", place.label)
            text.lines += [f"{place.label}, attempt {number}", *(line for line in head if line)]
            self._texts.append(text)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._flush_often, daemon=True)
        self._flush()
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self.write(self.format(record))

    def write(self, line: str) -> None:
        for text in self._texts:
            text.lines.append(redact(line))

    def end(self, how: str) -> None:
        self._stop.set()
        self._thread.join()
        self._amounts()
        for text in self._texts:
            text.lines.append(redact(f"{utc_now()} ended: {how}"))
        self._flush()

    def _flush_often(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            if any(text.amount is None for text in self._texts):
                self._amounts()
            self._flush()

    def _amounts(self) -> None:
        """Say how much of each stage is done: as soon as it is known, and at the end."""
        told = self._meter.progress()
        for text in self._texts:
            one = told.get(text.label)
            if one and (one.done, one.total) != text.amount:
                text.amount = one.done, one.total
                rate = f", {one.rate:.2f}/s" if one.rate else ""
                new = one.done - one.begun_with
                text.lines.append(f"{utc_now()} {one.done}/{one.total} done, {new} of them in this attempt{rate}")

    def _flush(self) -> None:
        for text in self._texts:
            with contextlib.suppress(OSError):  # A log that cannot be written must not end what it tells of.
                text.flush()


class _Text:
    """The lines of one log file, and how many of them are in it."""

    def __init__(self, logs: Folder, name: str, label: str) -> None:
        self._logs = logs
        self._name = name
        self.label = label
        self.lines: list[str] = []
        self.amount: tuple[int, int] | None = None
        self._written = 0

    def flush(self) -> None:
        number = len(self.lines)
        if number > self._written:
            self._logs.write_bytes(self._name, ("\n".join(self.lines[:number]) + "\n").encode())
            self._written = number
