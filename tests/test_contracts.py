"""Contracts of the code itself: light imports, one-way dependencies, Ray in one package, short functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "xgray").rglob("*.py"))
MAX_LINES = 70
MAX_PARAMETERS = 8
HEAVY = ("torch", "ray", "vllm", "transformers")


def test_the_command_line_imports_no_heavy_library() -> None:
    code = f"import sys, xgray.cli.main; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.split() == []


def test_packages_import_in_one_direction() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_distributed_imports_ray(file: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").split(".")[0])
    if "distributed" not in file.relative_to(ROOT).parts:
        assert "ray" not in imported


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_are_short(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = node.args
            parameters = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            assert (node.end_lineno or 0) - node.lineno < MAX_LINES, f"line {node.lineno}: {node.name} is too long"
            assert len(parameters - {"self", "cls"}) <= MAX_PARAMETERS, f"line {node.lineno}: {node.name}"
