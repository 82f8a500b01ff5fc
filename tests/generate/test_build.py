"""The engine of a section where vLLM is not installed, in processes whose Python cannot find it."""

import os
import re
import subprocess
import sys

import pytest

HIDES_VLLM = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] == "vllm" else find_spec(name, *where)
"""
ENGINE = """
import sys
from xgray.config import Generate
from xgray.errors import InputError
from xgray.generate.build import engine_name

try:
    print(engine_name(Generate.model_validate({"execution": {"engine": sys.argv[1]}})))
except InputError as error:
    print(error)
"""
REFUSAL = r"generate\.execution\.engine: vllm is not installed.*make install EXTRA=cpu.*transformers"


@pytest.fixture
def without_vllm(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDES_VLLM)
    paths = str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    assert python("-c", "import vllm").returncode != 0
    return python


@pytest.mark.parametrize(
    ("name", "answer"), [("auto", "transformers"), ("transformers", "transformers"), ("vllm", REFUSAL)]
)
def test_engine_where_vllm_is_not_installed(without_vllm, name, answer):
    assert re.fullmatch(answer, without_vllm("-c", ENGINE, name).stdout.strip())


def test_run_with_an_engine_that_is_not_installed_ends_with_one_line_and_no_files(without_vllm, tiny_model, tmp_path):
    options = "--name", "e", "--model.id", tiny_model, "--variants", "[]", "--runs", str(tmp_path / "runs")
    run = without_vllm("-m", "xgray.cli.main", "generate", *options, "--generate.execution.engine", "vllm")
    assert run.returncode == 2
    assert re.fullmatch(f"xgray: {REFUSAL}\n", run.stderr)
    assert not (tmp_path / "runs").exists()
