"""vLLM as on CUDA, where an engine computes in a process of its own: what is left of it when the engine is killed."""

import contextlib
import json

import psutil
import pytest

from tests.processes import descendants, kill_family, start_python, wait_until

pytestmark = pytest.mark.slow

ENGINE = {"engine": "vllm", "batch_size": 5}
PROGRAM = """
import pathlib, sys, time
from xgray.config import Generate
from xgray.generate.build import build_engine
from xgray.generate.engine import Weights
if __name__ == "__main__":
    engine = build_engine("vllm", Weights(sys.argv[1], None, "float32"), Generate(k=1, max_new_tokens=2))
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)
"""
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


def test_no_worker_is_left_of_a_core_that_is_killed_while_it_starts(tiny_model, tmp_path, monkeypatch):
    with started(tmp_path, tiny_model, monkeypatch) as process:
        wait_until(lambda: descendants(process.pid, "VLLM::Worker"), process, timeout=300)
        (core,) = descendants(process.pid, "EngineCore")
        workers = descendants(process.pid, "VLLM::Worker")
        assert any(map(is_alive, workers))
        core.kill()
        wait_until(lambda: not any(map(is_alive, workers)), process, timeout=2)


def test_nothing_is_left_of_an_engine_whose_program_is_killed_outside_ray(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    process = start_python("-c", PROGRAM, tiny_model, tmp_path / "ready")
    try:
        wait_until((tmp_path / "ready").exists, process, timeout=300)
        cores = descendants(process.pid, "EngineCore")
        assert cores
        process.kill()
        wait_until(lambda: not any(map(is_alive, cores)), timeout=LEFT_SECONDS)
    finally:
        kill_family(process)
