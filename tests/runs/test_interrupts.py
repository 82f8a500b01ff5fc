"""Signals to a real process: the first one interrupts it, the second one ends it."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest

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
    # A background job of a shell ignores SIGINT, and its children inherit that.
    default_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=default_interrupt) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("number", "reason", "grace"),
    [(signal.SIGTERM, "stopped by SIGTERM\n", GRACE_SECONDS), (signal.SIGINT, "interrupted by Ctrl-C\n", 0.0)],
)
def test_the_first_signal_interrupts_and_the_second_ends_the_process(process, number, reason, grace):
    began = time.monotonic()
    process.send_signal(number)
    assert process.stdout.readline() == reason
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
