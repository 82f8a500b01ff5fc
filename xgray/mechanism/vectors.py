"""Value vectors that point the probe's way, and which of their neurons are at work.

The value vectors of highest cosine with the probe, as they arrive in the residual stream, are the *potential sources*
of toxicity; those of them whose mean activation after the English prompts is above 0, and which thus do write their
vector into the stream, are the *actual sources*. What a value vector promotes is told by the vocabulary's tokens of
highest logit under the unembedding matrix.

All layers are gone through once, then the vocabulary; beside the model itself, no more than a layer's vectors are held
at a time, or as many of the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xgray.config import Neuron
from xgray.errors import InputError
from xgray.mechanism.neurons import blocks, down_projections, written_vectors
from xgray.mechanism.probe import FeatureArray
from xgray.mechanism.tokens import token_texts
from xgray.stats.bootstrap import FloatArray, draw_seed, estimate, ratio_statistic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIDENCE, RESAMPLES = 0.95, 2000
"""Of the intervals of mean activations, over prompts."""


@dataclass(frozen=True)
class ValueVector:
    layer: int
    index: int
    cosine: float
    """With the probe."""
    tokens: list[str]
    """What it promotes, the strongest first."""

    @property
    def neuron(self) -> Neuron:
        return self.layer, self.index


@dataclass(frozen=True)
class LayerCosines:
    """The cosines of all value vectors of one layer."""

    num_neurons: int
    mean: float
    max: float


def potential_sources(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, w: FeatureArray, top_k: int, num_tokens: int
) -> tuple[list[ValueVector], list[LayerCosines]]:
    """The value vectors of highest cosine with the probe, the highest first, and what all layers have.

    Args:
        w: the probe, ``(hidden_size,)``.
        top_k: how many, of all layers together; all where the model has fewer.
        num_tokens: of each one's projection on the vocabulary.

    Raises:
        InputError: the probe is of another width than the model, or no direction at all.
    """
    import torch

    hidden_size = model.config.get_text_config().hidden_size
    if w.shape != (hidden_size,):
        raise InputError(f"the probe has {len(w)} dimensions, and the model {hidden_size}; train a probe on this model")
    if not (np.isfinite(w).all() and w.any()):
        raise InputError("the probe is no direction: its weights are 0 or no numbers; train it for more epochs")
    direction = torch.from_numpy(w).to(model.device)
    direction = direction / direction.norm()
    layers: list[LayerCosines] = []
    neurons: list[Neuron] = []
    best, kept = torch.empty(0, device=model.device), torch.empty(0, hidden_size, device=model.device)
    with torch.inference_mode():
        for layer, (block, projection) in enumerate(zip(blocks(model), down_projections(model), strict=True)):
            written = written_vectors(block, projection)
            cosines, indices, vectors, told = _best_of_layer(written, direction, top_k)
            layers.append(told)
            neurons += [(layer, index) for index in indices]
            best, order = torch.cat([best, cosines]).topk(min(top_k, len(neurons)))
            neurons, kept = [neurons[place] for place in order.tolist()], torch.cat([kept, vectors])[order]
        tokens = top_tokens(model, kept, num_tokens, len(tokenizer), max(one.num_neurons for one in layers))
    texts = token_texts(tokenizer)
    found = [
        ValueVector(*neuron, cosine, [texts(token) for token in row])
        for neuron, cosine, row in zip(neurons, best.tolist(), tokens, strict=True)
    ]
    return found, layers


def _best_of_layer(
    vectors: torch.Tensor, direction: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, list[int], torch.Tensor, LayerCosines]:
    """The highest cosines of a layer, their neurons' indices and value vectors, and what the layer has."""
    import torch

    lengths = torch.linalg.vector_norm(vectors, dim=1)
    cosines = torch.where(lengths > 0, vectors @ direction / lengths, 0)
    best, indices = cosines.topk(min(top_k, len(cosines)))
    told = LayerCosines(len(cosines), cosines.mean().item(), cosines.max().item())
    return best, indices.tolist(), vectors[indices], told


def top_tokens(
    model: PreTrainedModel,
    vectors: torch.Tensor,
    num_tokens: int,
    vocabulary_size: int,
    block_size: int,
) -> list[list[int]]:
    """The tokens of highest logit of each of ``(n, hidden_size)`` vectors under the unembedding matrix.

    Args:
        vocabulary_size: rows of the matrix beyond it, which some models have as padding, are no tokens.
        block_size: tokens that are projected on at once; it does not change what is found.
    """
    import torch

    unembedding = model.get_output_embeddings().weight[:vocabulary_size]
    logits = torch.empty(len(vectors), 0, device=vectors.device)
    tokens = torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
    for start in range(0, len(unembedding), block_size):
        block = unembedding[start : start + block_size].float()
        own, places = (vectors @ block.T).topk(min(num_tokens, len(block)), dim=1)
        logits, tokens = torch.cat([logits, own], dim=1), torch.cat([tokens, places + start], dim=1)
        logits, order = logits.topk(min(num_tokens, logits.shape[1]), dim=1)
        tokens = tokens.gather(1, order)
    return tokens.tolist()


def activation_intervals(activations: FloatArray, neurons: Sequence[Neuron], seed: int) -> list[dict[str, Any]]:
    """Each neuron's mean over texts of ``(num_texts, num_neurons)`` activations, with its interval over texts."""
    ones = np.ones(len(activations))
    measured = []
    for at, (layer, index) in enumerate(neurons):
        draw = draw_seed(seed, "vectors", f"{layer}/{index}")
        one = estimate(ratio_statistic(activations[:, at], ones), len(activations), RESAMPLES, draw)
        low, high = one.interval(CONFIDENCE) or (None, None)
        measured.append({"value": one.value, "low": low, "high": high})
    return measured


def overlap(given: Sequence[Neuron], found: Sequence[Neuron], num_neurons: int) -> dict[str, Any]:
    """How many neurons are in both lists, their share of all that are in either, and how many chance would give.

    Chance draws ``found`` from the model's ``num_neurons`` at random.
    """
    both, either = set(given) & set(found), set(given) | set(found)
    return {
        "num_found": len(found),
        "num_common": len(both),
        "jaccard": len(both) / len(either) if either else None,
        "expected": len(given) * len(found) / num_neurons,
    }
