"""vLLM as on CUDA, where an engine computes in processes of its own: what is left of a killed one, and its refusals."""

import json
import time

import psutil
import pytest

from tests.processes import descendants, finish, start_python, wait_until
from xgray.storage.folder import Folder

pytestmark = pytest.mark.slow

ENGINE = {"engine": "vllm", "batch_size": 5}
LEFT_SECONDS = 10


def start(root, tiny_model, monkeypatch, **environment):
    for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    models = {"model": tiny_model, "adapter": None, "merged": tiny_model}
    arguments = {"root": str(root), "models": models, "generate": ENGINE, "names": ["base"]}
    return start_python("-m", "tests.distributed.pipeline_driver", json.dumps(arguments))


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_of_a_killed_engine_and_another_one_goes_on(tiny_model, tmp_path, monkeypatch):
    process = start(tmp_path, tiny_model, monkeypatch)
    rows = Folder(str(tmp_path / "generate" / "base" / "rows"))
    wait_until(lambda: descendants(process.pid, "EngineCore"), process, timeout=300)
    (actor,) = descendants(process.pid, "GenerateActor")
    family = actor.children(recursive=True)
    assert any("EngineCore" in " ".join(member.cmdline()) for member in family)
    actor.kill()
    killed = time.monotonic()
    while any(map(is_alive, family)) and time.monotonic() - killed < LEFT_SECONDS:
        time.sleep(0.1)
    assert not [member for member in family if is_alive(member)]
    result = json.loads(finish(process, timeout=300)[0])
    assert result["tallies"]["generate/base"]["num_completions"] == 40
    assert len(list(rows.names())) == 4


def test_an_engine_that_has_too_little_memory_ends_the_run_with_its_own_reason(tiny_model, tmp_path, monkeypatch):
    process = start(tmp_path, tiny_model, monkeypatch, VLLM_CPU_KVCACHE_SPACE="100000")
    _, errors = finish(process, code=1, timeout=300)
    (line,) = [line for line in errors.splitlines() if line.startswith("InputError")]
    assert "requested memory for kv (100000.0 GiB)" in line
    assert "VLLM_CPU_KVCACHE_SPACE" in line
    assert "one by one" not in errors
