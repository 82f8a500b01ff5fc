"""vLLM as on CUDA, where an engine computes in a process of its own: what is left of it when the engine is killed."""

import contextlib
import json

import psutil
import pytest

from tests.processes import descendants, kill_family, start_python, wait_until

pytestmark = pytest.mark.slow

ENGINE = {"engine": "vllm", "batch_size": 5}
LEFT_SECONDS = 10


@contextlib.contextmanager
def started(root, tiny_model, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    models = {"model": tiny_model, "adapter": None, "merged": tiny_model}
    arguments = {"root": str(root), "models": models, "generate": ENGINE, "names": ["base"]}
    process = start_python("-m", "tests.distributed.pipeline_driver", json.dumps(arguments))
    try:
        yield process
    finally:
        kill_family(process)


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_of_a_killed_engine(tiny_model, tmp_path, monkeypatch):
    """That another engine goes on in its place is in ``test_pipeline``."""
    with started(tmp_path, tiny_model, monkeypatch) as process:
        wait_until(lambda: descendants(process.pid, "EngineCore"), process, timeout=300)
        (actor,) = descendants(process.pid, "GenerateActor")
        family = actor.children(recursive=True)
        assert any("EngineCore" in " ".join(member.cmdline()) for member in family)
        actor.kill()
        wait_until(lambda: not any(map(is_alive, family)), process, timeout=LEFT_SECONDS)
