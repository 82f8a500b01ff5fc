"""Run the slow tests, each file in a process of its own: ``python -m tests.run_slow [--jobs N] [FILE ...]``.

Slow tests load engines, trainers and clusters into their process, and these bring threads, signal handlers and two
OpenMP runtimes that stay until the process ends. One process for each file keeps them apart. When a process dies, the
test that it was running is named and counts as failed, and the file's other tests run in a new process.

The processes are forks of this one, which imports the libraries first: every file would take ten seconds of a core for
the same imports. Nothing is computed here, since threads do not survive a fork.

When the processor is idle for long, because the files under way wait for servers, one file more runs beside them.

Output and traces go to ``build/slow-tests/``, a log for each file. The last line counts the outcomes, and the exit code
is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from xgray.models.gguf import quiet_deepspeed

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "slow-tests"
EVENTS = "XGRAY_TEST_EVENTS"
"""The environment variable that names the file to which a test process writes what it does."""
TRACE_SECONDS = 500
"""After this long in one test the stacks of all threads go to the log; the test itself is ended a little later."""
FILE_SECONDS = 1500
"""After this long a process is taken to hang, and is killed."""
LONGEST = (
    "distributed/test_train",
    "test_docs",
    "distributed/test_pipeline",
    "distributed/test_serve",
    "cli/test_scorer_train",
    "experiment/test_end_to_end",
    "cli/test_plan_command",
    "distributed/test_nodes",
    "experiment/test_trainings_side_by_side",
    "distributed/test_submit",
    "experiment/test_probe_vectors",
    "experiment/test_driver",
    "distributed/test_fluency",
    "distributed/test_workers",
)
"""The files that take longest, in the order in which they begin: one that began last would end alone. The two that
train with two workers at once are far apart, since side by side they would wait for each other's cores."""
LIBRARIES = (
    "transformers.models.llama.modeling_llama",
    "peft",
    "trl.trainer.dpo_trainer",
    "ray.data",
    "ray.train.torch",
)
"""What most slow tests import, and the processes share."""
LOOK_SECONDS = 15.0
"""How often the load of the processor is looked at."""
IDLE_PERCENT = 70.0
"""Below this load over that time there is room for one file more, if there are ``FILE_BYTES`` of memory."""
FILE_BYTES = 8 * 2**30
"""The memory that a file may take."""
NUM_SLOWEST = 25
LOG_TAIL = 12_000
"""Characters of a log that are printed when a test of its file failed."""


@dataclass
class FileResult:
    """What the tests of one file came to."""

    path: str
    outcomes: dict[str, str] = field(default_factory=dict)
    """``passed``, ``failed`` or ``skipped`` for each test."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each test, its fixtures included."""
    total_seconds: float = 0.0

    @property
    def log_name(self) -> str:
        return self.path.removeprefix("tests/").removesuffix(".py").replace("/", "-") + ".log"

    def num(self, outcome: str) -> int:
        return sum(found == outcome for found in self.outcomes.values())


def default_jobs() -> int:
    """Return how many files run side by side: one for each core and 8 GiB of memory, at most four."""
    return max(1, min(os.cpu_count() or 1, round(psutil.virtual_memory().total / FILE_BYTES), 4))


def slow_files() -> list[str]:
    """Return the test files that have slow tests, those of ``LONGEST`` first and in its order."""
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.slow" in path.read_text()]
    names = sorted(path.relative_to(ROOT).as_posix() for path in files)
    rank = {f"tests/{name}.py": position for position, name in enumerate(LONGEST)}
    return sorted(names, key=lambda name: rank.get(name, len(rank)))


@dataclass
class Running:
    """A process that runs the tests of a file."""

    result: FileResult
    log: Path
    began: float
    pid: int = 0

    @property
    def events(self) -> Path:
        return self.log.with_suffix(".events")

    def start(self) -> None:
        """Run the tests of the file that are not done, in a fork of this process."""
        self.events.write_text("")
        self.deadline = time.monotonic() + FILE_SECONDS
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            sys.exit(self._run_tests())

    def _run_tests(self) -> int:
        with self.log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        os.environ[EVENTS] = str(self.events)
        arguments = ["-m", "slow", self.result.path, "-p", "tests.run_slow", "--durations=0"]
        arguments += ["-o", f"faulthandler_timeout={TRACE_SECONDS}"]
        arguments += [f"--deselect={test}" for test in self.result.outcomes]
        sys.argv = ["pytest", *arguments]
        return pytest.main(arguments)

    def ended(self, status: int) -> bool:
        """Take the outcomes of a process that ended; return False if it died, and the other tests have to run yet."""
        code = os.waitstatus_to_exitcode(status)
        running = _read_events(self.events, self.result)
        if running is not None:  # the process died, or was killed because it hung
            self.result.outcomes[running] = "failed"
            with self.log.open("a") as stream:
                stream.write(f"\nThe process ended with {code} while it ran {running}.\n")
        elif code not in (0, 1, 5):  # 5: no tests are left
            self.result.outcomes[f"{self.result.path} ended with {code}"] = "failed"
        self.result.total_seconds = time.monotonic() - self.began
        return running is None or code == pytest.ExitCode.INTERRUPTED


def run_files(paths: list[str], num_jobs: int) -> Iterator[FileResult]:
    """Run the slow tests of the files, ``num_jobs`` side by side and one more at idle times; yield each as it ends.

    The files begin in the given order, except that the one more is the last of those that have not begun.
    """
    waiting, running = deque(paths), dict[int, Running]()
    psutil.cpu_percent()
    next_look = time.monotonic() + LOOK_SECONDS

    def begin(path: str) -> None:
        result = FileResult(path)
        process = Running(result, LOGS / result.log_name, time.monotonic())
        process.log.write_text("")
        process.start()
        running[process.pid] = process

    while waiting or running:
        while waiting and len(running) < num_jobs:
            begin(waiting.popleft())
        if time.monotonic() > next_look:
            is_idle = psutil.cpu_percent() < IDLE_PERCENT and psutil.virtual_memory().available > FILE_BYTES
            if waiting and len(running) == num_jobs and is_idle:
                begin(waiting.pop())
            next_look = time.monotonic() + LOOK_SECONDS
        time.sleep(0.1)
        for pid, process in list(running.items()):
            if time.monotonic() > process.deadline:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del running[pid]
            if process.ended(status):
                yield process.result
            else:
                process.start()
                running[process.pid] = process


def load_libraries() -> None:
    """Import the libraries of the tests, with the environment that the tests set."""
    importlib.import_module("tests.conftest")
    quiet_deepspeed()
    for name in LIBRARIES:
        importlib.import_module(name)


def _read_events(path: Path, result: FileResult) -> str | None:
    """Add a process's events to the file's result, and return the test that had begun and not ended."""
    running = None
    for line in path.read_text().splitlines():
        event = json.loads(line)
        test = event["test"]
        if event["kind"] == "start":
            running = test
        elif event["kind"] == "end":
            running = None
        else:
            result.seconds[test] = result.seconds.get(test, 0.0) + event["seconds"]
            before = result.outcomes.get(test, "passed")
            # A test that passed can still fail in the teardown of its fixtures.
            result.outcomes[test] = event["outcome"] if event["outcome"] != "passed" else before
    return running


# The hooks of a test process, into which pytest loads this module as a plugin.

_log = os.dup(2)
"""The log, which pytest's capture of the standard error does not reach."""


def _write_event(**event: object) -> None:
    with open(os.environ[EVENTS], "a") as stream:
        stream.write(json.dumps(event) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    _write_event(kind="start", test=nodeid)


def pytest_runtest_setup() -> None:
    # Ray's shutdown resets the handlers of SIGSEGV and the like, after which a crash would leave no trace.
    faulthandler.disable()
    faulthandler.enable(_log)


def pytest_runtest_logreport(report: object) -> None:
    _write_event(kind="phase", test=report.nodeid, outcome=report.outcome, seconds=report.duration)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _write_event(kind="end", test=nodeid)


def main() -> int:
    """Run the files and print the outcome of each as it ends, then the slowest tests and the total."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="files that run side by side (%(default)s)")
    parser.add_argument("files", nargs="*", help="test files; by default all that have slow tests")
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    load_libraries()
    results = []
    for result in run_files(arguments.files or slow_files(), arguments.jobs):
        results.append(result)
        print(f"{result.total_seconds:6.0f} s  {result.path}: {_counts([result])}", flush=True)
        if result.num("failed"):
            print((LOGS / result.log_name).read_text()[-LOG_TAIL:], flush=True)
    _print_slowest(results)
    for result in results:
        for test, outcome in result.outcomes.items():
            if outcome == "failed":
                print(f"FAILED {test}")
    print(_counts(results))
    return 1 if any(result.num("failed") for result in results) else 0


def _counts(results: list[FileResult]) -> str:
    """Return ``12 passed, 0 failed``, and the number of skipped tests if there are any."""
    passed, failed, skipped = (
        sum(result.num(outcome) for result in results) for outcome in ("passed", "failed", "skipped")
    )
    return f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else "")


def _print_slowest(results: list[FileResult]) -> None:
    seconds = {test: value for result in results for test, value in result.seconds.items()}
    print(f"\nThe {NUM_SLOWEST} slowest tests, with the fixtures that each was the first to use:")
    for test in sorted(seconds, key=seconds.__getitem__, reverse=True)[:NUM_SLOWEST]:
        print(f"{seconds[test]:6.0f} s  {test}")
    print()


if __name__ == "__main__":
    sys.exit(main())
