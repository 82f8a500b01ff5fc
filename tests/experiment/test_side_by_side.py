"""Jobs of sleeping threads instead of trainings: in what order they run, and what a failure or an interrupt does."""

import _thread
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from xgray.errors import DivergedError, InputError, StageError
from xgray.experiment.side_by_side import Job, failure, run_side_by_side

SECONDS = 10
"""After this long a thread that waits for another gives up, and the test fails."""


class Watch:
    """Counts the jobs that run at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: list[str] = []
        self.seen: list[list[str]] = []

    def job(self, label: str, cpus: int = 1, gpus: float = 0, until: Callable[[], object] = lambda: None) -> Job:
        def run(stop: Future[None]) -> None:
            with self.lock:
                self.running.append(label)
                self.seen.append(list(self.running))
            try:
                until()
            finally:
                with self.lock:
                    self.running.remove(label)

        return Job(label, cpus, gpus, run)


def test_as_many_jobs_run_at_once_as_there_are_cores() -> None:
    watch, both = Watch(), threading.Barrier(2)
    jobs = [watch.job(label, until=lambda: both.wait(SECONDS)) for label in "abcd"]
    assert run_side_by_side(jobs, 2, 0) == {}
    assert max(map(len, watch.seen)) == 2
    assert {label for running in watch.seen[:2] for label in running} == {"a", "b"}


def test_a_larger_job_waits_until_it_fits_and_later_ones_do_not_pass_it() -> None:
    watch = Watch()
    assert run_side_by_side([watch.job("a"), watch.job("large", cpus=2), watch.job("c")], 2, 0) == {}
    assert watch.seen == [["a"], ["large"], ["c"]]
    assert run_side_by_side([watch.job("too large", cpus=9)], 2, 0) == {}, "Ray is to say what it waits for"


def test_three_thirds_of_a_gpu_are_a_whole_one() -> None:
    watch, all_three = Watch(), threading.Barrier(3)
    jobs = [watch.job(label, gpus=0.3333, until=lambda: all_three.wait(SECONDS)) for label in "abc"]
    assert run_side_by_side([*jobs, watch.job("d", gpus=0.3333)], 8, 1) == {}
    assert max(map(len, watch.seen)) == 3


def test_a_failure_takes_no_other_job_down_and_is_named() -> None:
    def fail() -> None:
        raise DivergedError("train: the loss of step 3 is nan")

    watch = Watch()
    jobs = [watch.job("train/a", until=fail), watch.job("train/b"), watch.job("train/c")]
    failed = run_side_by_side(jobs, 1, 0)
    assert [running for (running,) in watch.seen] == ["train/a", "train/b", "train/c"]
    error = failure(failed, 3)
    assert type(error) is InputError
    assert "train/a: the loss of step 3 is nan\nThe 2 others have come to an end" in str(error)
    died = {"train/b": StageError("train/b: the worker died")}
    assert type(failure(failed | died, 3)) is StageError, "one of them may succeed when it is tried again"
    assert isinstance(failure({"train/a": OSError(28, "No space left")}, 3), OSError)


def test_an_interrupt_stops_what_runs_and_begins_nothing_else() -> None:
    stopped = []

    def run(stop: Future[None]) -> None:
        _thread.interrupt_main()
        stop.result(SECONDS)
        stopped.append(True)
        raise KeyboardInterrupt

    watch, before = Watch(), signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([Job("a", 1, 0, run), watch.job("b")], 1, 0)
    signal.signal(signal.SIGINT, before)
    assert stopped == [True]
    assert watch.seen == []
