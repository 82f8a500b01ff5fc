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
from xgray import stop
stop.listen()
try:
    with stop.grace():
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print(stop.reason(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def process():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True,
        # A shell has what it starts in the background ignore interrupts, and the children of that inherit it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as one:  # fmt: skip
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
        yield one
        one.kill()


@pytest.mark.parametrize(
    ("number", "reason", "grace"),
    [(signal.SIGTERM, "stopped by SIGTERM\n", GRACE_SECONDS), (signal.SIGINT, "interrupted by Ctrl-C\n", 0.0)],
)
def test_first_signal_interrupts_and_the_second_leaves_at_once(process, number, reason, grace):
    began = time.monotonic()
    process.send_signal(number)
    assert process.stdout.readline() == reason
    assert time.monotonic() - began >= grace
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 1


def test_second_signal_does_not_wait_for_the_grace_to_end(process):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 1
    assert time.monotonic() - began < GRACE_SECONDS - 0.3
    assert process.stdout.read() == ""
