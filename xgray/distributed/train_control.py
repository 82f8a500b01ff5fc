"""What the driver of a training and its workers tell each other."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.errors import XgrayError


class TrainControl:
    """An actor on the driver's node."""

    def __init__(self) -> None:
        self.stopping = False
        self.failure: XgrayError | None = None
        self.started = False

    def stop(self) -> None:
        """Save a checkpoint at the end of the step in flight, and leave."""
        self.stopping = True

    def fail(self, error: XgrayError) -> None:
        """Do not try again: it would fail for the same reason."""
        self.failure = error

    def asked(self) -> tuple[bool, XgrayError | None]:
        """What a worker asks when it starts, and after every step."""
        self.started = True
        return self.stopping, self.failure

    def lost(self) -> None:
        """The workers are gone, and wait for room again."""
        self.started = False

    def waiting(self) -> bool:
        """Whether the workers have not found room."""
        return not self.started


def open_line() -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(TrainControl).options(num_cpus=0, scheduling_strategy=here).remote()


class Losses(UserCallback):  # type: ignore[misc]
    """Tells the line when workers are lost."""

    def __init__(self, line: Any) -> None:
        self.line = line

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        ray.get(self.line.lost.remote())
