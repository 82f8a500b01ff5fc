"""Compare the embedded scorer's speed with its encoder's original weights and with a classifier of XLM-R's size.

    python -m benchmarks.embedding [--texts 64] [--rounds 3]

The original encoder scores with a logistic head, as a user's own labelled texts give one. The classifier has XLM-R
base's sizes and random weights, and runs in transformers in float32, in batches of 16. Short texts are the embedded
prompts; long ones are ten prompts joined. Rounds alternate between the three, on one thread and on two; the table shows
the medians of texts a second and of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

EMBEDDED = Path(__file__).parent.parent / "xgray" / "embedded" / "prompts"


def texts(count: int, joined: int) -> list[str]:
    """Return texts of all languages in turn, each of so many prompts."""
    by_language = [
        [json.loads(line)["Prompt"] for line in path.read_text(encoding="utf-8").split("\n") if line]
        for path in sorted(EMBEDDED.glob("RTP_LX_*.json"))
    ]
    made = []
    for index in range(count):
        prompts = by_language[index % len(by_language)]
        start = index // len(by_language) * joined
        made.append(" ".join(prompts[(start + step) % len(prompts)] for step in range(joined)))
    return made


def measure(num_threads: int, count: int, num_rounds: int) -> None:
    """Print, as JSON, the seconds of each round of the three scorers, for short and for long texts."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    from xgray.score.embedded_weights import packaged_weights
    from xgray.score.embedding import Embedder, installed_embedding
    from xgray.score.embedding_head import Head

    torch.set_num_threads(num_threads)
    began = time.perf_counter()
    weights = packaged_weights(installed_embedding())
    tuned = Embedder(num_threads, weights.engine_file())
    tuned.embed(["a text"])
    start_seconds = time.perf_counter() - began
    original, head = Embedder(num_threads), Head(np.zeros(384), 0.0)
    sizes = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}
    classifier = XLMRobertaForSequenceClassification(XLMRobertaConfig(**sizes)).eval()

    def classify(batch: list[str]) -> None:
        # Random token ids, four characters a token: tokenizing is left out, which favours the classifier.
        for start in range(0, len(batch), 16):
            width = max(len(text) for text in batch[start : start + 16]) // 4 + 2
            with torch.inference_mode():
                classifier(input_ids=torch.randint(5, 250000, (len(batch[start : start + 16]), min(width, 512))))

    scorers = {
        "embedded": lambda batch: weights.probabilities(tuned.embed(batch), batch, "en"),
        "original": lambda batch: head.probabilities(original.embed(batch), batch, "en"),
        "xlm-r base": classify,
    }
    seconds: dict[str, dict[str, list[float]]] = {}
    for kind, joined in (("short", 1), ("long", 10)):
        batch = texts(count if kind == "short" else count // 4, joined)
        seconds[kind] = {name: [] for name in scorers}
        for number in range(num_rounds + 1):
            for name, score in scorers.items():
                began = time.perf_counter()
                score(batch)
                if number:  # the first round warms up
                    seconds[kind][name].append((time.perf_counter() - began) / len(batch))
    print(json.dumps({"seconds": seconds, "start": start_seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="measure with so many threads, in this process")
    options = parser.parse_args()
    if options.threads:
        measure(options.threads, options.texts, options.rounds)
        return
    print(f"{'threads':8}{'texts':8}{'scorer':14}{'texts/s':>10}{'time, embedded / this':>24}")
    for num_threads in (1, 2):
        command = [sys.executable, "-m", "benchmarks.embedding", "--threads", str(num_threads)]
        command += ["--texts", str(options.texts), "--rounds", str(options.rounds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        for kind, by_scorer in result["seconds"].items():
            for name, seconds in by_scorer.items():
                ratios = [ours / theirs for ours, theirs in zip(by_scorer["embedded"], seconds, strict=True)]
                rate, ratio = 1 / statistics.median(seconds), statistics.median(ratios)
                print(f"{num_threads:<8}{kind:8}{name:14}{rate:10.1f}{ratio:24.2f}")
        print(f"{num_threads:<8}start of the embedded scorer: {result['start']:.1f} s")


if __name__ == "__main__":
    main()
