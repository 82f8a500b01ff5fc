"""The drivers of one run as processes: watched, started twice, stopped, killed, and finished in the end."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.processes import finish, kill_family, start_xgray, wait_until, xgray

pytestmark = pytest.mark.slow

SECRET = "mild-but-secret-value"
NUM_PROMPTS = 72


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_xgray(*arguments, cwd=folder, HF_TOKEN=SECRET)


def status(folder: Path) -> dict:
    """Return the run's state as ``xgray status`` prints it, its stages by their labels."""
    answer = xgray("status", "runs/e", "--json", cwd=folder)
    assert answer.returncode == 0, answer.stderr
    state = json.loads(answer.stdout)
    return state | {"stages": {stage["label"]: stage for stage in state["stages"]}}


def num_rows(folder: Path, stage: str) -> int:
    files = [path for path in folder.glob(f"runs/e/{stage}/base/rows/*.parquet") if not path.name.startswith(".")]
    return sum(pq.read_metadata(path).num_rows for path in files)


def test_a_run_is_watched_doubled_stopped_killed_and_finished(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')  # the dummy engine has no weights
    (tmp_path / "e.yaml").write_text(
        "name: e\nmodel: {id: ./model}\nvariants: []\n"
        "languages: [ar, cs, de, en, es, fr, hi, id, it, ko, nl, pl]\nprompts: {limit: 6}\n"
        "generate: {k: 2, max_new_tokens: 8, execution: {engine: dummy, dummy: {seconds: 0.25}, batch_size: 2}}\n"
    )
    command = "run", "e.yaml", "--only", "generate,score"
    logs = tmp_path / "runs/e/score/base/logs"

    first = start(tmp_path, *command)
    wait_until(lambda: num_rows(tmp_path, "score") > 4, first)
    wait_until(lambda: status(tmp_path)["stages"]["generate/base"]["rate"], first)  # after a heartbeat
    second = xgray(*command, cwd=tmp_path)
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1, second.stderr
    state = status(tmp_path)
    assert first.poll() is None, "this test needs a longer run"
    running = state["stages"]["generate/base"]
    assert state["driver_alive"]
    assert running["state"] == "running"
    assert 0 < running["num_done"] <= NUM_PROMPTS == running["num_total"]
    assert running["rate"] > 0
    assert running["eta_seconds"] > 0
    assert state["stages"]["evaluate"]["state"] == "missing"

    children = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    _, err = finish(first, 1)
    assert "xgray: stopped by SIGTERM" in err
    assert "same command" in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert re.search(r"^\d\d:\d\d:\d\d score/base [1-9]\d*/72 \d+\.\d\d/s, .* left$", err, re.MULTILINE), err
    left = num_rows(tmp_path, "score")
    stopped = status(tmp_path)
    assert stopped["driver"] is None
    assert stopped["stages"]["score/base"]["state"] == "stopped"
    assert stopped["stages"]["score/base"]["num_done"] == left
    assert stopped["stages"]["score/base"]["num_total"] == NUM_PROMPTS
    assert stopped["stages"]["score/base"]["error"] == "stopped by SIGTERM"

    third = start(tmp_path, *command)
    wait_until(lambda: num_rows(tmp_path, "score") > left, third)
    kill_family(third)
    num_killed = num_rows(tmp_path, "score") - left
    killed = status(tmp_path)
    assert not killed["driver_alive"]
    assert f"process {third.pid}" in killed["driver"]
    assert killed["stages"]["score/base"]["num_attempts"] == 2
    assert "killed" in killed["stages"]["score/base"]["error"]

    last = start(tmp_path, *command)
    _, err = finish(last, 0)
    assert f"taken over from a driver that is dead: host {os.uname().nodename}, process {third.pid}" in err
    assert num_rows(tmp_path, "generate") == num_rows(tmp_path, "score") == NUM_PROMPTS
    done = status(tmp_path)["stages"]["score/base"]
    assert (done["state"], done["num_done"], done["num_total"], done["num_attempts"]) == ("done", 72, 72, 3)
    assert (done["rate"], done["eta_seconds"], done["error"]) == (None, None, None)
    texts = [(logs / f"attempt-000{number}.log").read_text() for number in (1, 2, 3)]
    assert "ended: stopped by SIGTERM" in texts[0].splitlines()[-1]
    assert "ended" not in texts[1]
    assert "ended: finished" in texts[2].splitlines()[-1]
    assert re.search(rf"72/72 done, {NUM_PROMPTS - left - num_killed} of them in this attempt", texts[2])
    for file in (tmp_path / "runs").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes(), file
