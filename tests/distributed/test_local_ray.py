"""The files of a local Ray are the user's alone, and an address where no Ray answers is refused soon."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray

from xgray.distributed import cluster
from xgray.distributed.local_ray import keep_token_private, private_folder, settings
from xgray.errors import InputError, StageError

NICENESS = "RAY_worker_niceness"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_folder_of_sessions_is_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    parent = Path(private_folder()).parent
    assert mode(parent) == 0o700
    parent.chmod(0o777)
    assert Path(private_folder()).parent == parent
    assert mode(parent) == 0o700
    parent.rmdir()
    parent.symlink_to(tmp_path)
    with pytest.raises(InputError, match="RAY_TMPDIR"):
        private_folder()


def test_the_token_is_readable_by_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray" / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "elsewhere")
    keep_token_private()
    assert not file.exists()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    keep_token_private()
    token = file.read_text()
    assert len(token) >= 32
    assert mode(file) == 0o600
    file.chmod(0o644)
    keep_token_private()
    assert (file.read_text(), mode(file)) == (token, 0o600)


def test_the_settings_of_a_local_ray_end_with_it_and_the_users_stay(monkeypatch):
    monkeypatch.setenv(NICENESS, "7")
    monkeypatch.delenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", raising=False)
    with settings():
        assert os.environ[NICENESS] == "7"
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"
    assert os.environ[NICENESS] == "7"
    assert "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER" not in os.environ


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nonsense", "not the address of a Ray cluster"),
        ("http://head:8265", "not the address of a Ray cluster"),
        ("127.0.0.1:99999", "not the address of a Ray cluster"),
        ("127.0.0.1:1", "nothing answers"),
        ("ray://127.0.0.1:1", "nothing answers"),
    ],
)
def test_an_address_without_a_cluster_is_refused_soon(address, reason, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"--address: .*{reason}.*HOST:6379") as caught, cluster.connect(address):
        pass
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_ray_that_does_not_start_in_time_is_started_again_and_leaves_no_process(monkeypatch, tmp_path, caplog):
    """Ray waits half a minute for a raylet that has died, so its failure is raised here, with a process left."""
    started = []

    def fail(**options):
        command = [sys.executable, "-c", "import time; time.sleep(60)", f"--session-dir={options['_temp_dir']}"]
        started.append(subprocess.Popen(command))
        raise Exception("The current node timed out during startup.")

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "init", fail)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises(StageError, match="did not start in time, 3 times over"), cluster.connect():
        pass
    assert len(started) == 3
    assert not any(psutil.pid_exists(process.pid) for process in started)
    assert caplog.text.count("it is started again") == 2
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
