"""How much of each stage is done, how fast it goes and how long the rest will take.

All of it by this process's monotonic clock, which no change of the date moves, and since this process began: what an
earlier attempt left counts as done, not as speed. The rate runs up to the last advance, as blocks come in bursts; once
the silence after it is out of the usual, up to now.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

STANDSTILL_SECONDS = 60.0
"""No shorter silence is a standstill, however fast it went before."""
STANDSTILL_STEPS = 3
"""How many times the longest of the last steps is a standstill."""
NUM_STEPS = 100
"""So many steps back: more than the blocks that a cluster's actors bring at once before they all fall silent."""
START_SECONDS = 600.0
"""Before the first advance: engines load, and a training computes its reference."""


class OnProgress(Protocol):
    """Told how much of a stage is done, of how much, and how many errors were recorded in this attempt."""

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None: ...


@dataclass(frozen=True)
class Progress:
    """Of one stage, now."""

    done: int
    total: int
    """0 while it is not known."""
    begun_with: int
    """What was done before this attempt."""
    errors: int
    rate: float | None
    """A second; None before the first advance."""
    eta_seconds: float | None
    standstill_seconds: float | None = None
    """Since the last advance, where that is longer than usual; None while it goes on, and in leases of before."""


@dataclass(frozen=True)
class _Point:
    done: int
    seconds: float


@dataclass
class _Track:
    start: _Point
    first: _Point | None
    """The first advance: what comes before it is mostly the start of engines, and is no part of the rate after it."""
    last: _Point
    total: int
    errors: int
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_STEPS))
    """Seconds from one advance to the next, of the last ones."""

    def advance(self, point: _Point) -> None:
        if self.first is None:
            self.first = point
        else:
            self.steps.append(point.seconds - self.last.seconds)
        self.last = point

    def standstill(self, now: float, anything: float) -> float | None:
        """Seconds without an advance, where they are too many; ``anything`` is when any stage of the run advanced.

        Before its first advance a stage may wait for its turn while others go on.
        """
        if self.total and self.last.done >= self.total:
            return None
        if self.first is None:
            silence, usual = now - anything, START_SECONDS
        else:
            longest = max(self.steps, default=self.first.seconds - self.start.seconds)
            silence, usual = now - self.last.seconds, max(STANDSTILL_SECONDS, STANDSTILL_STEPS * longest)
        return silence if silence > usual else None

    def rate(self, until: float) -> float | None:
        since = self.start if self.first is None or self.last == self.first else self.first
        seconds = until - since.seconds
        return (self.last.done - since.done) / seconds if seconds > 0 and self.last.done > since.done else None


class Meter:
    """Collects what stages report; any thread may report or ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tracks: dict[str, _Track] = {}

    def __call__(self, label: str, done: int, total: int, errors: int = 0) -> None:
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
        """By label, in the order in which the stages began to report."""
        with self._lock:
            now = self._clock()
            anything = max((track.last.seconds for track in self._tracks.values()), default=now)
            return {label: _progress(track, now, anything) for label, track in self._tracks.items()}


def _progress(track: _Track, now: float, anything: float) -> Progress:
    done, standstill = track.last.done, track.standstill(now, anything)
    rate = track.rate(track.last.seconds if standstill is None else now)
    eta = max(track.total - done, 0) / rate if rate and track.total else None
    return Progress(done, track.total, track.start.done, track.errors, rate, eta, standstill)


def duration(seconds: float) -> str:
    """Return a time in words, in the unit that suits it: ``45 s``, ``3.4 min``, ``5.0 h``, ``9.8 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(unit > 1)}f} {name}"
    return f"{seconds / 86400:,.1f} days"
