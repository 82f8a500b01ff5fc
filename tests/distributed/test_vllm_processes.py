"""vLLM as on CUDA, where an engine computes in processes of its own: what is left of a killed one, and its refusals."""

import contextlib
import json

import psutil
import pytest

from tests.processes import descendants, finish, kill_family, start_python, wait_until

pytestmark = pytest.mark.slow

ENGINE = {"engine": "vllm", "batch_size": 5}
LEFT_SECONDS = 10


@contextlib.contextmanager
def started(root, tiny_model, monkeypatch, **environment):
    for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    models = {"model": tiny_model, "adapter": None, "merged": tiny_model}
    arguments = {"root": str(root), "models": models, "generate": ENGINE, "names": ["base"]}
    process = start_python("-m", "tests.distributed.pipeline_driver", json.dumps(arguments))
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_family(process)


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_of_a_killed_engine_and_another_one_goes_on(tiny_model, tmp_path, monkeypatch):
    with started(tmp_path, tiny_model, monkeypatch) as process:
        wait_until(lambda: descendants(process.pid, "EngineCore"), process, timeout=300)
        (actor,) = descendants(process.pid, "GenerateActor")
        family = actor.children(recursive=True)
        assert any("EngineCore" in " ".join(member.cmdline()) for member in family)
        actor.kill()
        wait_until(lambda: not any(map(is_alive, family)), process, timeout=LEFT_SECONDS)
        result = json.loads(finish(process, timeout=300)[0])
    assert result["tallies"]["generate/base"]["num_completions"] == 40


def test_an_engine_that_has_too_little_memory_ends_the_run_with_its_own_reason(tiny_model, tmp_path, monkeypatch):
    with started(tmp_path, tiny_model, monkeypatch, VLLM_CPU_KVCACHE_SPACE="100000") as process:
        _, errors = finish(process, code=1, timeout=300)
    (line,) = [line for line in errors.splitlines() if line.startswith("InputError")]
    assert "requested memory for kv (100000.0 GiB)" in line
    assert "VLLM_CPU_KVCACHE_SPACE" in line
    assert "one by one" not in errors
