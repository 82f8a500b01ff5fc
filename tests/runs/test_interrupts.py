"""Signals to a real process: the first one interrupts it, the second one ends it."""

import signal
import time

import pytest

from tests.processes import read_line, start_python
from xgray.runs.interrupts import GRACE_SECONDS

PROGRAM = """
import sys, time
from xgray.runs import interrupts
interrupts.listen()
try:
    with interrupts.grace():
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print(interrupts.reason(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process():
    with start_python("-c", PROGRAM) as process:
        assert read_line(process) == "ready"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("number", "reason", "grace"),
    [(signal.SIGTERM, "stopped by SIGTERM", GRACE_SECONDS), (signal.SIGINT, "interrupted by Ctrl-C", 0.0)],
)
def test_the_first_signal_interrupts_and_the_second_ends_the_process(process, number, reason, grace):
    began = time.monotonic()
    process.send_signal(number)
    assert read_line(process) == reason
    assert time.monotonic() - began >= grace
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 1


def test_a_second_signal_does_not_wait_for_the_grace_period(process):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - began < GRACE_SECONDS - 0.3
    assert process.stdout.read() == ""
