"""Drivers as real processes on one run directory. Another machine is one whose lease names another boot."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from xgray.runs.lease import LEASE, Lease, find_driver
from xgray.storage.folder import Folder

DRIVER = str(Path(__file__).with_name("lease_driver.py"))
BEAT, STALE = "0.2", "2"


@pytest.fixture
def start(tmp_path):
    """Starts a driver of the run; what is left at the end is killed."""
    started = []

    def one() -> subprocess.Popen[str]:
        command = [sys.executable, DRIVER, str(tmp_path), BEAT, STALE]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def change(run: Path, **fields: object) -> None:
    lease = json.loads((run / LEASE).read_text())
    Folder(str(run)).write_json(LEASE, lease | fields)


def test_second_driver_is_told_who_is_there_and_leaves(start, tmp_path):
    first = start()
    assert says(first) == "held"
    second = start()
    told = says(second)
    assert second.wait(timeout=20) == 1
    assert f"process {first.pid}, since {datetime.now(UTC):%Y-%m-%d}" in told
    assert "last sign of life" in told
    assert f"xgray status {tmp_path}" in told
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert says(first) == "stopped by SIGTERM"
    assert first.wait(timeout=20) == 1
    assert not (tmp_path / LEASE).exists()
    assert says(start()) == "held"


def test_a_driver_that_was_killed_is_followed_at_once_on_its_machine(start, tmp_path):
    first = start()
    assert says(first) == "held"
    first.kill()  # and not waited for: a zombie is dead, too
    began = time.monotonic()
    second = start()
    assert says(second) == "held"
    assert time.monotonic() - began < 10
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == second.pid


def test_a_number_that_was_given_to_another_process_is_no_driver(start, tmp_path):
    first = start()
    assert says(first) == "held"
    first.kill()
    first.wait()
    change(tmp_path, pid=os.getpid())
    found = find_driver(Folder(str(tmp_path)))
    assert found is not None
    assert not found[1]
    assert says(start()) == "held"


@pytest.mark.parametrize("hours", [-30, 0, 30])
def test_a_driver_elsewhere_is_alive_as_long_as_it_beats_whatever_its_clock_says(start, tmp_path, hours):
    first = start()
    assert says(first) == "held"
    first.kill()
    first.wait()
    seen = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
    change(tmp_path, machine="elsewhere", host="elsewhere", seen=seen)
    second = start()
    for beat in range(100, 110):
        time.sleep(0.3)
        if second.poll() is not None:
            break
        change(tmp_path, beat=beat)
    assert "host elsewhere" in says(second)
    assert second.wait(timeout=20) == 1
    began = time.monotonic()
    assert says(start()) == "held", "after it has fallen silent"
    assert time.monotonic() - began > float(STALE)


def test_a_driver_that_lost_its_lease_stops_and_leaves_the_other_ones_alone(start, tmp_path):
    first = start()
    assert says(first) == "held"
    change(tmp_path, token="another", pid=os.getpid(), host="elsewhere")
    told = says(first)
    assert "another driver has taken over" in told
    assert "host elsewhere" in told
    assert first.wait(timeout=20) == 1
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "another"


def test_of_drivers_that_start_at_once_one_goes_on(start, tmp_path):
    drivers = [start() for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(one.poll() is None for one in drivers) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    (last,) = [one for one in drivers if one.poll() is None]
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == last.pid
    assert [one.wait() for one in drivers if one is not last] == [1, 1, 1]


@pytest.mark.parametrize("content", [b"", b'{"token": "a', b"[]", b'{"format": 9}', b"\xff"])
def test_a_damaged_lease_is_a_dead_driver_s(tmp_path, content):
    (tmp_path / LEASE).write_bytes(content)
    with Lease(Folder(str(tmp_path)), stale_seconds=0.5):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LEASE).exists()


def test_asking_takes_nothing(start, tmp_path):
    run = Folder(str(tmp_path))
    assert find_driver(run) is None
    assert list(tmp_path.iterdir()) == []
    assert says(start()) == "held"
    found = find_driver(run)
    assert found is not None
    holder, alive = found
    assert alive
    assert holder.progress["generate/base"].done == 3
    change(tmp_path, machine="elsewhere", seen="2001-01-01T00:00:00Z")
    assert find_driver(run)[1], "its clock is years behind, but it beats"
