"""How much of each stage is done, how fast it goes and how long the rest will take.

All of it by this process's monotonic clock, which no change of the date moves, and since this process began: what an
earlier attempt left counts as done, not as speed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


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

    def rate(self) -> float | None:
        since = self.start if self.first is None or self.last == self.first else self.first
        seconds = self.last.seconds - since.seconds
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
                track.first = track.first or point
                track.last = point
            track.total, track.errors = total, errors

    def progress(self) -> dict[str, Progress]:
        """By label, in the order in which the stages began to report."""
        with self._lock:
            return {label: _progress(track) for label, track in self._tracks.items()}


def _progress(track: _Track) -> Progress:
    done, rate = track.last.done, track.rate()
    eta = max(track.total - done, 0) / rate if rate and track.total else None
    return Progress(done, track.total, track.start.done, track.errors, rate, eta)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
