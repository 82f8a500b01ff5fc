"""Bilingual sentence retrieval: how well sentences find their translations by their states in two languages.

accuracy
    Top-1 retrieval: the share of sentences whose translation has a higher cosine than every other sentence of the
    other language. In each direction, and the mean of both directions.
margin_accuracy
    The same with the ratio margin (Artetxe & Schwenk 2019, eq. 2) in place of the cosine. It corrects for sentences
    that are near to all others: ``cos(x, y) / (sum_z cos(x, z) / 2k + sum_z cos(y, z) / 2k)``, where z runs over the k
    nearest neighbours in the other language, of x and of y respectively; k = 4. A pair whose denominator is not above
    0 has no margin and is not retrieved.
cosine
    The mean cosine of the true pairs, which the paper's script prints under the name retrieval accuracy, although it
    ranks nothing.

A tie is a miss: a translation must exceed every other sentence by more than 1e-9. Each metric is computed for each
layer and averaged over all layers, including the embeddings, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from xgray.mechanism.metrics_file import RetrievalScores
from xgray.mechanism.retrieval.files import States
from xgray.stats.bootstrap import FloatArray
from xgray.stats.intervals import Kind, mean_of

PIVOT = "en"
"""The language against which all others are measured."""
NUM_NEIGHBORS = 4
"""k of the ratio margin."""
TIE = 1e-9
"""Similarities that differ by no more than this are equal."""
DEFINITIONS = ("accuracy", "margin_accuracy", "cosine")
"""The retrieval scores that are correlated with the fall of EMT."""
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
    """Compute every metric of :data:`METRICS` for each layer and sentence.

    Args:
        states: of a language's sentences, ``(num_layers, num_prompts, hidden_size)``.
        english: of their English translations, of the same shape.

    Returns:
        By metric, ``(num_layers, num_prompts)``. In accuracies 1 is a hit and 0 a miss.
    """
    layers = [
        _layer_scores(cosines(layer, english_layer)) for layer, english_layer in zip(states, english, strict=True)
    ]
    return {metric: np.stack([layer[metric] for layer in layers]) for metric in METRICS}


def cosines(left: FloatArray | States, right: FloatArray | States) -> FloatArray:
    """Return the cosine of each row of ``left`` with each row of ``right``, ``(num_left, num_right)``.

    The cosine with a row of zeros is 0.

    Args:
        left: ``(num_left, hidden_size)``.
        right: ``(num_right, hidden_size)``.
    """
    return _unit(left) @ _unit(right).T


def _unit(rows: FloatArray | States) -> FloatArray:
    """Scale each row to length 1, in float64; rows of zeros stay as they are."""
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(lengths > 0, lengths, 1)


def _layer_scores(similarity: FloatArray) -> dict[str, FloatArray]:
    """Compute every metric of one layer, each ``(num_prompts,)``, from its cosines, ``(num_prompts, num_prompts)``."""
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
    """Return 1.0 for each row whose diagonal entry is above all others of the row, else 0.0, ``(n,)``.

    Args:
        similarity: ``(n, n)``.
    """
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    return (np.diagonal(similarity) > others.max(axis=1) + TIE).astype(float)


def ratio_margin(similarity: FloatArray) -> FloatArray:
    """Return the ratio margin of each pair (Artetxe & Schwenk 2019, eq. 2), ``(n, n)``; -inf where there is none.

    Args:
        similarity: cosines, ``(n, n)``.
    """
    denominators = (_neighbor_mean(similarity)[:, None] + _neighbor_mean(similarity.T)[None, :]) / 2
    return np.divide(similarity, denominators, out=np.full_like(similarity, -np.inf), where=denominators > 0)


def _neighbor_mean(similarity: FloatArray) -> FloatArray:
    """Return the mean cosine of each row's nearest neighbours, ``(n,)``."""
    return np.sort(similarity, axis=1)[:, -NUM_NEIGHBORS:].mean(axis=1)


def summary(scores: Mapping[str, FloatArray], confidence: float) -> RetrievalScores:
    """Average each metric over prompts and layers, and over prompts within each layer, with intervals over prompts.

    The candidates among which each sentence was retrieved are taken as given: they are all sentences of the file.

    Args:
        scores: by metric, ``(num_layers, num_prompts)``.
        confidence: of the intervals; 0.95 for 95 %.
    """
    summarized: RetrievalScores = {}
    for metric, layers in scores.items():
        kind: Kind = "real" if metric == "cosine" else "unit"
        rows = [layers.mean(axis=0), *layers]
        ends = [mean_of(row, kind).interval(confidence) or (math.nan, math.nan) for row in rows]
        summarized[metric] = {
            "value": float(rows[0].mean()),
            "low": ends[0][0],
            "high": ends[0][1],
            "layers": {
                "value": layers.mean(axis=1).tolist(),
                "low": [low for low, _ in ends[1:]],
                "high": [high for _, high in ends[1:]],
            },
        }
    return summarized
