"""How well sentences find their translations, from their states in two languages.

accuracy
    The share of sentences whose own translation is nearer, by cosine, than every other one: top-1, in each direction,
    and the mean of both.
margin_accuracy
    The same with the ratio margin (Artetxe & Schwenk 2019, eq. 2) in the place of the cosine, which takes off what
    makes some sentences everybody's neighbour: ``cos(x, y) / (sum of cos(x, z) / 2k + sum of cos(y, z) / 2k)`` over
    the k nearest neighbours z of x, and of y, in the other language; k = 4. A pair whose neighbours' mean is not above
    0 has no ratio, and is not retrieved.
cosine
    The mean cosine of the true pairs: what the released code prints under the name retrieval accuracy. Nothing is
    ranked in it.

A tie is a miss: a sentence counts only where no other one is as near, to 1e-9. Each is measured layer by layer and
averaged over all layers, the embeddings among them, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xgray.mechanism.retrieval.files import States
from xgray.stats.bootstrap import FloatArray, mean_intervals

PIVOT = "en"
"""The language that every other one is measured against."""
NUM_NEIGHBORS = 4
TIE = 1e-9
DEFINITIONS = ("accuracy", "margin_accuracy", "cosine")
METRICS = (
    "accuracy",
    "accuracy_to_en",
    "accuracy_from_en",
    "margin_accuracy",
    "margin_accuracy_to_en",
    "margin_accuracy_from_en",
    "cosine",
)


def pair_scores(states: States, english: States) -> dict[str, FloatArray]:
    """Every metric of each layer and sentence, ``(num_layers, num_prompts)``; of accuracies a 1 is a hit.

    Args:
        states: of a language's sentences, ``(num_layers, num_prompts, hidden_size)``.
        english: of their translations, of the same shape.
    """
    layers = [_layer_scores(cosines(own, other)) for own, other in zip(states, english, strict=True)]
    return {metric: np.stack([layer[metric] for layer in layers]) for metric in METRICS}


def cosines(left: FloatArray | States, right: FloatArray | States) -> FloatArray:
    """The cosine of each row with each, ``(num_left, num_right)``; 0 with a row of zeros."""
    return _unit(left) @ _unit(right).T


def _unit(rows: FloatArray | States) -> FloatArray:
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1)


def _layer_scores(similarity: FloatArray) -> dict[str, FloatArray]:
    margins = ratio_margin(similarity)
    scores = {
        "accuracy_to_en": hits(similarity),
        "accuracy_from_en": hits(similarity.T),
        "margin_accuracy_to_en": hits(margins),
        "margin_accuracy_from_en": hits(margins.T),
        "cosine": np.diagonal(similarity),
    }
    for name in ("accuracy", "margin_accuracy"):
        scores[name] = (scores[f"{name}_to_en"] + scores[f"{name}_from_en"]) / 2
    return scores


def hits(similarity: FloatArray) -> FloatArray:
    """1 for each row whose diagonal entry is above all others of the row, else 0."""
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return (np.diagonal(similarity) > others.max(axis=1) + TIE).astype(float)


def ratio_margin(similarity: FloatArray) -> FloatArray:
    """The ratio margin of each pair; -inf where there is none."""
    around = (_neighborhood(similarity)[:, None] + _neighborhood(similarity.T)[None, :]) / 2
    return np.divide(similarity, around, out=np.full_like(similarity, -np.inf), where=around > 0)


def _neighborhood(similarity: FloatArray) -> FloatArray:
    """The mean cosine of each row's nearest neighbours."""
    return np.sort(similarity, axis=1)[:, -NUM_NEIGHBORS:].mean(axis=1)


def summary(
    scores: Mapping[str, FloatArray], confidence: float, resamples: int, seed: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Each metric's mean over prompts and layers, and of each layer, with intervals over prompts.

    A resample draws sentences with their ranks: the candidates that they are told apart from stay those of the file.
    """
    columns = [np.concatenate([one.mean(axis=0, keepdims=True), one]) for one in scores.values()]
    values = np.stack(columns, axis=-1)  # (1 + num_layers, num_prompts, num_metrics)
    low, high = mean_intervals(values.transpose(1, 0, 2), confidence, resamples, seed)
    means = values.mean(axis=1)
    return {
        metric: {
            "value": float(means[0, at]),
            "low": float(low[0, at]),
            "high": float(high[0, at]),
            "layers": {
                "value": means[1:, at].tolist(),
                "low": low[1:, at].tolist(),
                "high": high[1:, at].tolist(),
            },
        }
        for at, metric in enumerate(scores)
    }
