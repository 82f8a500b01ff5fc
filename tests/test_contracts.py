"""What must hold for the code itself: light imports, one-way dependencies, Ray in one place, short files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "xgray").rglob("*.py"))
HEAVY = ("torch", "ray", "vllm", "transformers")


def test_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, xgray.cli; print(*(name for name in {HEAVY} if name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.split() == []


def test_dependencies_run_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_is_short_and_ray_stays_in_its_place(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").split(".")[0])
    if "distributed" not in file.relative_to(ROOT).parts:
        assert "ray" not in imported


def test_readme_has_a_line_with_a_comment_for_each_file_of_the_code() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("\nxgray/\n")[2].partition("```")[0]
    folders, named = [Path("xgray")], set()
    for line in tree.splitlines():
        name, _, comment = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = folders[depth - 1] / name
        assert comment.strip(), path
        assert (ROOT / path).exists(), path
        folders[depth:] = [path]
        named.add(path)
    assert {file.relative_to(ROOT) for file in FILES if file.name != "__init__.py"} <= named
