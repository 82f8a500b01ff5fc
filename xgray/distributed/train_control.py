"""What the driver of a training and its workers tell each other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.errors import XgrayError

STARTING = "starting the workers"
LOADING = "loading the model"
WAITING = "waiting for the reference"
STEPS = "steps"
EXPORTING = "exporting the weights"
MEASURING = "measuring the agreement"

REPORT_SECONDS = 1.0
"""A worker reports the progress of a phase at most this often."""


@dataclass(frozen=True)
class Phase:
    """A phase of a training, and how much of it is done.

    The unit of ``reference`` is a preference pair. The progress of ``steps`` is in ``metrics.jsonl`` and not here.
    """

    name: str
    done: int = 0
    total: int = 1


class TrainControl:
    """The actor on the driver's node through which the driver and the workers reach each other."""

    def __init__(self) -> None:
        self._stop_requested = False
        self._failure: XgrayError | None = None
        self._is_placed = False
        self._phases = {STARTING: Phase(STARTING)}

    def stop(self) -> None:
        """Ask the workers to save a checkpoint at the end of the step in flight, and to leave."""
        self._stop_requested = True

    def fail(self, error: XgrayError) -> None:
        """Record an error for which no new try is made, because it would fail again for the same reason."""
        self._failure = error

    def orders(self) -> tuple[bool, XgrayError | None]:
        """Return whether to stop, and the recorded error. A worker asks when it starts, and after every step."""
        self._is_placed = True
        return self._stop_requested, self._failure

    def workers_lost(self) -> None:
        """Note that the workers are gone, and wait for room again."""
        self._is_placed = False
        self._phases = {STARTING: Phase(STARTING)}

    def is_waiting(self) -> bool:
        """Return whether the workers have not found room."""
        return not self._is_placed

    def report(self, phase: Phase) -> None:
        """Note the progress of a phase; the phases before it are then complete."""
        for name, earlier in self._phases.items():
            if name != phase.name:
                self._phases[name] = Phase(name, earlier.total, earlier.total)
        self._phases[phase.name] = phase

    def phases(self) -> list[Phase]:
        """Return the phases that have begun since the workers started, in their order."""
        return list(self._phases.values())


def start_train_control() -> Any:
    """Start a :class:`TrainControl` on this process's node, and return the handle of the actor."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(TrainControl).options(num_cpus=0, scheduling_strategy=here).remote()


class PhaseReporter:
    """Reports phases from the first worker; other workers report nothing."""

    def __init__(self, control: Any, rank: int) -> None:
        self._control = control
        self._rank = rank
        self._last = Phase("")
        self._reported = 0.0

    def __call__(self, name: str, done: int = 0, total: int = 1) -> None:
        now = time.monotonic()
        is_news = name != self._last.name or done >= total or now - self._reported >= REPORT_SECONDS
        if self._rank == 0 and is_news:
            self._last, self._reported = Phase(name, done, total), now
            self._control.report.remote(self._last)


class WorkerLossCallback(UserCallback):  # type: ignore[misc]
    """Tells the control actor when workers are lost."""

    def __init__(self, control: Any) -> None:
        self.control = control

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        ray.get(self.control.workers_lost.remote())
