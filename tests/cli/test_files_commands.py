"""``xgray fields`` and ``xgray new``: what helps to write an experiment file."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.processes import xgray
from xgray.config.fields import json_schema
from xgray.config.file import load_experiment, read_yaml
from xgray.config.shipped import shipped_experiments

ROOT = Path(__file__).parents[2]


def test_fields_prints_the_file_a_section_or_the_schema(tmp_path):
    assert read_yaml(xgray("fields", cwd=tmp_path).stdout)["train"]["beta"] == 0.1
    assert list(read_yaml(xgray("fields", "score", cwd=tmp_path).stdout)) == ["score"]
    assert json.loads(xgray("fields", "--json-schema", cwd=tmp_path).stdout) == json_schema()
    wrong = xgray("fields", "trian", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "unknown section 'trian'" in wrong.stderr


def test_a_new_experiment_runs_as_it_is(tmp_path):
    done = xgray("new", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "xgray run mine.yaml" in done.stdout
    experiment = load_experiment(tmp_path / "mine.yaml")
    assert (experiment.name, experiment.prompts.path, experiment.train.pairs) == ("mine", "embedded", "embedded")
    (tmp_path / "rates.yaml").write_text("train: {seconds_per_step: 1}\n")
    planned = xgray("plan", "mine.yaml", "--rates", "rates.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    (generating,) = (line.split() for line in planned.stdout.splitlines() if "generate/base " in line)
    assert "30" in generating, "its prompts are read"
    assert "generate.tokens_per_second" in planned.stdout, "the rates that are missing are named"


@pytest.mark.parametrize("like", shipped_experiments())
def test_a_shipped_experiment_gets_another_name_and_nothing_else(like, tmp_path):
    assert xgray("new", "mine", "--like", like, cwd=tmp_path).returncode == 0
    mine, shipped = load_experiment(tmp_path / "mine.yaml"), load_experiment(shipped_experiments()[like])
    assert mine.name == "mine"
    assert mine.model_copy(update={"name": like}) == shipped


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["there"], "there.yaml: exists already"),
        (["../mine"], "name"),
        (["scores"], "score store"),
        (["mine", "--like", "gpt"], "mgpt"),
    ],
)
def test_new_refuses_what_it_cannot_write(arguments, fact, tmp_path):
    (tmp_path / "there.yaml").write_text("kept")
    done = xgray("new", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert fact in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("there.yaml", "kept")]


def test_jobs_are_links_to_the_experiments_of_the_package():
    for name, file in shipped_experiments().items():
        assert (ROOT / "jobs" / f"{name}.yaml").resolve() == file.resolve()


@pytest.mark.slow
def test_the_wheel_holds_the_experiments_as_files(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "xgray", tree / "xgray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    subprocess.run(build, cwd=tree, capture_output=True, timeout=300, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        for name, file in shipped_experiments().items():
            assert wheel.read(f"xgray/embedded/experiments/{name}.yaml") == file.read_bytes()
        assert "xgray/embedded/experiment_template.yaml" in wheel.namelist()
