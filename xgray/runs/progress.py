"""Measure how much of each stage is done, how fast it advances and how long the rest will take.

All times are of this process's monotonic clock, which no change of the date moves. They begin with this attempt: what
an earlier attempt left counts as done, but not towards the rate. Results come in bursts, one block at a time, so the
rate is measured up to the last advance; during a standstill, it is measured up to now.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

STANDSTILL_SECONDS = 60.0
"""The shortest silence that is a standstill, however fast the stage advanced before."""
STANDSTILL_STEPS = 3
"""A silence is a standstill if it is this many times as long as the longest of the last steps."""
NUM_STEPS = 100
"""The number of last steps; larger than the number of blocks that a cluster's actors finish at about the same time."""
START_SECONDS = 600.0
"""The shortest standstill before the first advance, while engines load or a training computes its reference."""

REFERENCE = "reference"
"""The phase of a training in which the reference's log-probabilities of the pairs are computed."""


class OnProgress(Protocol):
    """Called with a stage's label, the work that is done and in all, and the errors recorded in this attempt."""

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None: ...


@dataclass(frozen=True)
class Progress:
    """The progress of one stage now."""

    done: int
    total: int
    """0 while it is not known."""
    begun_with: int
    """Work that was done before this attempt."""
    errors: int
    rate: float | None
    """Work per second; None before the first advance."""
    eta_seconds: float | None
    standstill_seconds: float | None = None
    """Seconds since the last advance if they are unusually many, otherwise None; missing in leases of old versions."""


@dataclass(frozen=True)
class _Point:
    done: int
    seconds: float


@dataclass
class _Track:
    """What one stage has reported in this attempt."""

    start: _Point
    first: _Point | None
    """The first advance. The time before it, mostly the start of engines, is left out of later rates."""
    last: _Point
    total: int
    errors: int
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_STEPS))
    """Seconds from one advance to the next, for the last steps."""

    def advance(self, point: _Point) -> None:
        if self.first is None:
            self.first = point
        else:
            self.steps.append(point.seconds - self.last.seconds)
        self.last = point

    def standstill(self, now: float, last_of_run: float) -> float | None:
        """Return the seconds since the last advance if they are unusually many, otherwise None.

        Args:
            last_of_run: When any stage of the run last advanced. Before its own first advance a stage may wait for
                its turn while other stages run.
        """
        if self.total and self.last.done >= self.total:
            return None
        if self.first is None:
            silence, usual = now - last_of_run, START_SECONDS
        else:
            longest = max(self.steps, default=self.first.seconds - self.start.seconds)
            silence, usual = now - self.last.seconds, max(STANDSTILL_SECONDS, STANDSTILL_STEPS * longest)
        return silence if silence > usual else None

    def rate(self, until: float) -> float | None:
        """Return the work per second from the first advance to ``until``; from the start if there is only one."""
        since = self.start if self.first is None or self.last == self.first else self.first
        seconds = until - since.seconds
        return (self.last.done - since.done) / seconds if seconds > 0 and self.last.done > since.done else None

    def progress(self, now: float, last_of_run: float) -> Progress:
        standstill = self.standstill(now, last_of_run)
        rate = self.rate(self.last.seconds if standstill is None else now)
        eta = max(self.total - self.last.done, 0) / rate if rate and self.total else None
        return Progress(self.last.done, self.total, self.start.done, self.errors, rate, eta, standstill)


class Meter:
    """Collects the progress that stages report. Any thread may report or read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tracks: dict[str, _Track] = {}

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None:
        """Report the progress of a stage, as :class:`OnProgress`."""
        point = _Point(done, self._clock())
        with self._lock:
            track = self._tracks.get(label)
            if track is None or done < track.last.done:  # a training that went back to its last checkpoint
                self._tracks[label] = _Track(point, None, point, total, errors)
                return
            if done > track.last.done:
                track.advance(point)
            track.total, track.errors = total, errors

    def progress(self) -> dict[str, Progress]:
        """Return the progress of each stage by label, in the order in which the stages began to report."""
        with self._lock:
            now = self._clock()
            last_of_run = max((track.last.seconds for track in self._tracks.values()), default=now)
            return {label: track.progress(now, last_of_run) for label, track in self._tracks.items()}


def rate_unit(label: str) -> str:
    """Return the unit of a label's rate: ``steps/s`` of a training, ``pairs/s`` of its reference, else ``/s``."""
    stage, _, phase = label.partition(": ")
    if phase:
        return " pairs/s" if phase == REFERENCE else "/s"
    return " steps/s" if stage.startswith("train/") else "/s"


def duration(seconds: float) -> str:
    """Return a time in words, in the unit that suits it: ``45 s``, ``3.4 min``, ``5.0 h``, ``9.8 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(unit > 1)}f} {name}"
    return f"{seconds / 86400:,.1f} days"
