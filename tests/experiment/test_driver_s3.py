"""Lease, logs and status of a run on a real S3-compatible store that fails every tenth request."""

import json
import subprocess

import pytest
import yaml

from tests.object_store import CREDENTIALS, object_store
from tests.processes import read_line, start_python
from xgray.config import Experiment
from xgray.rows import Completions, to_table
from xgray.runs.attempt_log import last_attempt, log_attempt
from xgray.runs.lease import LEASE, find_driver
from xgray.runs.manifest import StageFolder
from xgray.runs.progress import Meter
from xgray.runs.status import run_state
from xgray.storage.folder import Folder


@pytest.fixture
def run(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        store.fail(every=10)
        yield Folder(store.uri("/runs/e"))


def test_one_driver_at_a_time_and_a_status_on_an_object_store(run):
    def start() -> subprocess.Popen[str]:
        return start_python("-m", "tests.runs.lease_driver", run.uri, "0.5", "5")

    values = {"name": "e", "model": {"id": "some/model"}, "languages": ["en"], "variants": []}
    experiment = Experiment.model_validate(values).model_dump(mode="json")
    run.write_bytes("experiment.yaml", yaml.safe_dump(experiment).encode())
    place = StageFolder(run / "generate" / "base", "generate", "base")
    place.begin({})
    for number in range(3):
        row = Completions(f"en/{number}", "en", "base", "p", ["c"], [1], ["length"])
        place.rows.write_parquet(f"{number}.parquet", to_table([row], Completions))
    meter = Meter()
    with log_attempt([place], meter):
        meter("generate/base", 3, 10)
    assert last_attempt(place.folder).total == 10

    assert find_driver(run) is None
    first = start()
    second = None
    try:
        assert read_line(first) == "held"
        second = start()
        assert f"process {first.pid}" in read_line(second)
        assert second.wait(timeout=60) == 1
        running = {stage.label: stage for stage in run_state(run).stages}
        assert (running["generate/base"].state, running["generate/base"].num_done) == ("running", 3)
        first.kill()
        first.wait()
        run.write_json(LEASE, run.read_json(LEASE) | {"machine": "elsewhere"})
        second = start()
        assert read_line(second) == "held", "after five seconds without a beat"
        assert json.loads(run.read_bytes(LEASE))["pid"] == second.pid
        second.terminate()
        assert read_line(second) == "stopped by SIGTERM"
        second.wait(timeout=60)
        assert not run.exists(LEASE)
        stopped = {stage.label: stage for stage in run_state(run).stages}
        assert (stopped["generate/base"].state, stopped["generate/base"].num_done) == ("stopped", 3)
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.communicate()
