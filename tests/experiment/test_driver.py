"""Drivers of one run as their users meet them: asked, doubled, stopped, killed, and finished in the end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "mild-but-secret-value"
NUM_PROMPTS = 240


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "HF_TOKEN": SECRET}
    return subprocess.Popen(
        [sys.executable, "-m", "xgray.cli.main", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def status(folder: Path) -> dict:
    out, err = command(folder, "status", "runs/e", "--json").communicate(timeout=60)
    told = json.loads(out) if out else pytest.fail(err)
    return told | {"stages": {one["label"]: one for one in told["stages"]}}


def num_rows(folder: Path, stage: str) -> int:
    files = [path for path in folder.glob(f"runs/e/{stage}/base/rows/*.parquet") if not path.name.startswith(".")]
    return sum(pq.read_metadata(path).num_rows for path in files)


def wait_for_rows(folder: Path, process: subprocess.Popen[str], more_than: int) -> None:
    deadline = time.monotonic() + 120
    while num_rows(folder, "score") <= more_than:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver and everything it started, as when the machine goes down."""
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)
    process.communicate()


def test_a_run_is_asked_doubled_stopped_killed_and_finished(tiny_model, tmp_path):
    (tmp_path / "e.yaml").write_text(
        f"name: e\nmodel: {{id: '{tiny_model}', dtype: float32}}\nvariants: []\n"
        "languages: [ar, cs, de, en, es, fr, hi, id, it, ko, nl, pl]\nprompts: {limit: 20}\n"
        "generate: {k: 2, max_new_tokens: 8, execution: {engine: transformers, batch_size: 2}}\n"
    )
    ours = "run", "e.yaml", "--only", "generate,score"
    logs = tmp_path / "runs/e/score/base/logs"

    first = command(tmp_path, *ours)
    wait_for_rows(tmp_path, first, 4)
    time.sleep(5)  # a heartbeat
    second = command(tmp_path, *ours)
    told = status(tmp_path)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid}" in err
    assert len(err.strip().splitlines()) == 1, err
    assert first.poll() is None, "this test needs a longer run"
    running = told["stages"]["generate/base"]
    assert told["driver_alive"]
    assert running["state"] == "running"
    assert 0 < running["num_done"] <= NUM_PROMPTS == running["num_total"]
    assert running["rate"] > 0
    assert running["eta_seconds"] > 0
    assert told["stages"]["evaluate"]["state"] == "missing"

    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "xgray: stopped by SIGTERM; what is done stays, and the same command goes on from there" in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert re.search(r"^\d\d:\d\d:\d\d score/base [1-9]\d*/240 \d+\.\d\d/s, .* left$", err, re.MULTILINE), err
    left = num_rows(tmp_path, "score")
    stopped = status(tmp_path)
    assert stopped["driver"] is None
    assert stopped["stages"]["score/base"]["state"] == "stopped"
    assert stopped["stages"]["score/base"]["num_done"] == left
    assert stopped["stages"]["score/base"]["num_total"] == NUM_PROMPTS
    assert stopped["stages"]["score/base"]["error"] == "stopped by SIGTERM"

    third = command(tmp_path, *ours)
    wait_for_rows(tmp_path, third, left)
    kill_all(third)
    killed = status(tmp_path)
    assert not killed["driver_alive"]
    assert f"process {third.pid}" in killed["driver"]
    assert killed["stages"]["score/base"]["num_attempts"] == 2
    assert "killed" in killed["stages"]["score/base"]["error"]

    last = command(tmp_path, *ours)
    _, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    assert f"taken over from a driver that is dead: host {os.uname().nodename}, process {third.pid}" in err
    assert num_rows(tmp_path, "generate") == num_rows(tmp_path, "score") == NUM_PROMPTS
    done = status(tmp_path)["stages"]["score/base"]
    assert (done["state"], done["num_done"], done["num_total"], done["num_attempts"]) == ("done", 240, 240, 3)
    assert (done["rate"], done["eta_seconds"], done["error"]) == (None, None, None)
    texts = [(logs / f"attempt-000{number}.log").read_text() for number in (1, 2, 3)]
    assert "ended: stopped by SIGTERM" in texts[0].splitlines()[-1]
    assert "ended" not in texts[1]
    assert "ended: finished" in texts[2].splitlines()[-1]
    assert f"240/240 done, {NUM_PROMPTS - num_done(texts[2])} of them in this attempt" in texts[2]
    for file in (tmp_path / "runs").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes(), file


def num_done(log: str) -> int:
    """What an attempt began with."""
    new = re.search(r"240/240 done, (\d+) of them", log)
    assert new
    return NUM_PROMPTS - int(new[1])
