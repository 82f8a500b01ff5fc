"""Compare ``xgray scorer train`` with the plain transformers Trainer: tokens a second, medians of paired runs.

    python -m benchmarks.scorer_train [--steps 30] [--repeats 3] [--layers 4] [--hidden 256] [--threads 1]

All fine-tune the same random XLM-R (by default 4 layers of 256) on the same texts, whose lengths are spread as those of
comments are, with one worker, AdamW and the same batch size; each run is a process of its own. "Trainer" is what the
examples of transformers do: batches as they come, padded to their longest text. "Trainer by length" samples texts of
similar length together, as xgray does. Tokens are those of the texts, without padding, and the seconds are those
between the ends of steps, so what padding costs shows; starts are reported as the other seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from xgray.config import ScorerTraining

VOCABULARY = 8000
BATCH = 16
MAX_LENGTH = 128
ATTRIBUTES = ["toxicity", "insult"]
WORDS = ["you", "are", "a", "kind", "stupid", "silly", "good", "friend", "idiot", "neighbour", "and", "the", "today"]


def write_inputs(folder: Path, num_texts: int, layers: int, hidden: int) -> ScorerTraining:
    """Write a random encoder with its tokenizer and a file of scored texts; return the training on them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForSequenceClassification

    generator = random.Random(0)
    # Comments: most are short, a few are long.
    sizes = [min(110, 3 + round(generator.lognormvariate(2.7, 0.9))) for _ in range(num_texts)]
    texts = [" ".join(generator.choice(WORDS) for _ in range(size)) for size in sizes]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **tokens).save_pretrained(folder / "encoder")
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        num_labels=len(ATTRIBUTES),
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder / "encoder")
    rows = [f"{text},{generator.random():.3f},{generator.random():.3f}" for text in texts]
    (folder / "scores.csv").write_text("\n".join(["text,toxicity,insult", *rows, ""]))
    source = {
        "kind": "scores",
        "path": str(folder / "scores.csv"),
        "licence": "made up",
        "language": "en",
        "columns": {name: name for name in ATTRIBUTES},
    }
    return ScorerTraining.model_validate(
        {
            "name": "benchmark",
            "output": str(folder / "out"),
            "model": {"id": str(folder / "encoder")},
            "attributes": ATTRIBUTES,
            "sources": [source],
            "held_out_share": 0.02,
            "max_length": MAX_LENGTH,
            "batch_size": BATCH,
            "patience": None,
            "eval_steps": 10**6,
        }
    )


def train_with_trainer(section: ScorerTraining, threads: int, by_length: bool) -> list[tuple[float, float]]:
    """Return the tokens and seconds of each step of a script that uses the Trainer alone."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(threads)
    ends: list[float] = []
    tokens: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(section.model.id))

    def collate(rows: list[dict[str, Any]]) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collator(rows)

    tokenizer = AutoTokenizer.from_pretrained(section.model.id)
    dataset = Dataset.from_csv(section.sources[0].path).map(
        lambda row: {
            **tokenizer(row["text"], truncation=True, max_length=MAX_LENGTH),
            "labels": [row[name] for name in ATTRIBUTES],
        },
        remove_columns=["text", *ATTRIBUTES],
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        section.model.id, problem_type="multi_label_classification"
    )
    arguments = TrainingArguments(
        output_dir=f"{section.output}/trainer",
        max_steps=section.max_steps or -1,
        per_device_train_batch_size=BATCH,
        learning_rate=section.learning_rate,
        train_sampling_strategy="group_by_length" if by_length else "random",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[Clock()]).train()
    return list(zip(tokens, [end - start for start, end in itertools.pairwise(ends)], strict=False))


def train_with_xgray(section: ScorerTraining, threads: int) -> list[tuple[float, float]]:
    """Return the tokens and seconds of each step of a training through Ray."""
    import ray

    from xgray.distributed.scorer_training import train_scorer
    from xgray.train.metrics import read_metrics

    ray.init(include_dashboard=False, address="local", log_to_driver=False)
    execution = section.execution.model_copy(update={"cpus_per_worker": threads})
    train_scorer(section.model_copy(update={"execution": execution}))
    rows = read_metrics(Path(section.output) / "metrics.jsonl")
    return [(row["tokens"], row["seconds"]) for row in rows if "loss" in row]


KINDS = {
    "Trainer": lambda section, threads: train_with_trainer(section, threads, by_length=False),
    "Trainer by length": lambda section, threads: train_with_trainer(section, threads, by_length=True),
    "xgray": train_with_xgray,
}


def measure(kind: str, options: list[str]) -> tuple[float, float]:
    """Return the tokens a second of a run in a new process, without its first step, and all its other seconds."""
    start = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, __file__, "--child", kind, *options]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    steps = json.loads(process.stdout.splitlines()[-1])[1:]
    tokens, seconds = (sum(values) for values in zip(*steps, strict=True))
    return tokens / seconds, time.perf_counter() - start - seconds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=list(KINDS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        num_texts = round((arguments.steps + 1) * BATCH * 1.1)
        with tempfile.TemporaryDirectory() as folder:
            section = write_inputs(Path(folder), num_texts, arguments.layers, arguments.hidden)
            section = section.model_copy(update={"max_steps": arguments.steps})
            print(json.dumps(KINDS[arguments.child](section, arguments.threads)))
        return
    options = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "layers", "hidden", "threads")]
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    others: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(arguments.repeats):
        for kind in list(KINDS) if repeat % 2 == 0 else list(KINDS)[::-1]:
            speed, other = measure(kind, options)
            speeds[kind].append(speed)
            others[kind].append(other)
            print(f"run {repeat + 1}: {kind:<18}{speed:>10,.0f} tokens/s, {other:.1f} s other", flush=True)
    print(f"\n{'':<18}{'tokens/s':>10}{'xgray over it':>15}{'other s':>10}   medians of {arguments.repeats} runs")
    for kind in KINDS:
        ratios = [xgray / other for xgray, other in zip(speeds["xgray"], speeds[kind], strict=True)]
        print(
            f"{kind:<18}{statistics.median(speeds[kind]):>10,.0f}{statistics.median(ratios):>15.2f}"
            f"{statistics.median(others[kind]):>10.1f}   (runs: {' '.join(f'{ratio:.2f}' for ratio in ratios)})"
        )


if __name__ == "__main__":
    main()
