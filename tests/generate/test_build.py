"""Which engine a section asks for, where vLLM is not installed: Python itself does not find it."""

import os
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
REFUSAL = "generate.execution.engine: vllm is not installed; make install EXTRA=cpu (or gpu), or take transformers"


@pytest.fixture
def without_vllm(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDES_VLLM)
    paths = str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    assert python("-c", "import vllm").returncode != 0
    return python


@pytest.mark.parametrize(
    ("wanted", "told"), [("auto", "transformers"), ("transformers", "transformers"), ("vllm", REFUSAL)]
)
def test_engine_where_vllm_is_not_installed(without_vllm, wanted, told):
    assert without_vllm("-c", ENGINE, wanted).stdout.strip() == told


def test_a_run_with_an_engine_that_is_not_installed_is_one_line(without_vllm, tiny_model, tmp_path):
    options = "--name", "e", "--model.id", tiny_model, "--variants", "[]", "--runs", str(tmp_path / "runs")
    done = without_vllm("-m", "xgray.cli.main", "generate", *options, "--generate.execution.engine", "vllm")
    assert done.returncode == 2
    assert done.stderr == f"xgray: {REFUSAL}\n"
    assert not (tmp_path / "runs").exists()
