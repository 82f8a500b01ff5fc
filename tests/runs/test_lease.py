"""Leases of real processes on one run. A driver on another machine is a lease that names another boot."""

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.processes import read_line, start_python
from xgray.runs.lease import LEASE, Lease, find_driver
from xgray.storage.folder import Folder

BEAT, STALE = "0.2", "2"


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a driver of the run; drivers that still run at the end are killed."""
    processes = []

    def start_driver() -> subprocess.Popen[str]:
        process = start_python("-m", "tests.runs.lease_driver", tmp_path, BEAT, STALE)
        processes.append(process)
        return process

    yield start_driver
    for process in processes:
        process.kill()
        process.communicate()


def change(run: Path, **fields: object) -> None:
    lease = json.loads((run / LEASE).read_text())
    Folder(str(run)).write_json(LEASE, lease | fields)


def test_a_second_driver_names_the_first_and_leaves(start, tmp_path):
    first = start()
    assert read_line(first) == "held"
    second = start()
    message = read_line(second)
    assert second.wait(timeout=20) == 1
    assert f"process {first.pid}, since {datetime.now(UTC):%Y-%m-%d}" in message
    assert "last sign of life" in message
    assert f"xgray status {tmp_path}" in message
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert read_line(first) == "stopped by SIGTERM"
    assert first.wait(timeout=20) == 1
    assert not (tmp_path / LEASE).exists()
    assert read_line(start()) == "held"


def test_a_killed_driver_is_replaced_at_once_on_its_machine(start, tmp_path):
    first = start()
    assert read_line(first) == "held"
    first.kill()  # not waited for: a zombie counts as dead too
    began = time.monotonic()
    second = start()
    assert read_line(second) == "held"
    assert time.monotonic() - began < 10
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == second.pid


def test_another_process_with_the_pid_is_not_the_driver(start, tmp_path):
    first = start()
    assert read_line(first) == "held"
    first.kill()
    first.wait()
    change(tmp_path, pid=os.getpid())
    found = find_driver(Folder(str(tmp_path)))
    assert found is not None
    assert not found[1]
    assert read_line(start()) == "held"


@pytest.mark.parametrize("hours", [-30, 0, 30])
def test_a_driver_on_another_machine_is_alive_while_it_beats_whatever_its_clock(start, tmp_path, hours):
    first = start()
    assert read_line(first) == "held"
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
    assert "host elsewhere" in read_line(second)
    assert second.wait(timeout=20) == 1
    began = time.monotonic()
    assert read_line(start()) == "held", "the other driver has stopped beating"
    assert time.monotonic() - began > float(STALE)


def test_a_driver_that_lost_its_lease_stops_and_keeps_the_other_lease(start, tmp_path):
    first = start()
    assert read_line(first) == "held"
    change(tmp_path, token="another", pid=os.getpid(), host="elsewhere")
    message = read_line(first)
    assert "another driver has taken over" in message
    assert "host elsewhere" in message
    assert first.wait(timeout=20) == 1
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "another"


def test_of_drivers_that_start_at_the_same_time_only_one_goes_on(start, tmp_path):
    drivers = [start() for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(driver.poll() is None for driver in drivers) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    (last,) = [driver for driver in drivers if driver.poll() is None]
    assert json.loads((tmp_path / LEASE).read_text())["pid"] == last.pid
    assert [driver.wait() for driver in drivers if driver is not last] == [1, 1, 1]


@pytest.mark.parametrize("content", [b"", b'{"token": "a', b"[]", b'{"format": 9}', b"\xff"])
def test_a_damaged_lease_is_that_of_a_dead_driver(tmp_path, content):
    (tmp_path / LEASE).write_bytes(content)
    with Lease(Folder(str(tmp_path)), stale_seconds=0.5):
        assert json.loads((tmp_path / LEASE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LEASE).exists()


def test_finding_the_driver_does_not_take_the_lease(start, tmp_path):
    run = Folder(str(tmp_path))
    assert find_driver(run) is None
    assert list(tmp_path.iterdir()) == []
    assert read_line(start()) == "held"
    found = find_driver(run)
    assert found is not None
    driver, is_alive = found
    assert is_alive
    assert driver.progress["generate/base"].done == 3
    change(tmp_path, machine="elsewhere", seen="2001-01-01T00:00:00Z")
    assert find_driver(run)[1], "its clock is years behind, but it beats"
