"""Value vectors that point in the probe's direction, and which of their neurons are active.

The value vectors with the highest cosine with the probe, as they arrive in the residual stream, are the *potential
sources* of toxicity. Those of them whose mean activation after the English prompts is above 0, and which thus add their
vector to the stream, are the *actual sources* (Li et al. 2024). What a value vector promotes is shown by the tokens
with the highest logits when it is multiplied with the unembedding matrix (Geva et al. 2022).

The layers are processed once, one after the other, then the vocabulary. Besides the model, no more is held in memory
than the vectors of one layer, or an equally large block of the unembedding matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xgray.config import Neuron
from xgray.errors import InputError
from xgray.mechanism.metrics_file import Overlap
from xgray.mechanism.neurons import down_projections, transformer_layers, written_vectors
from xgray.mechanism.probe import FeatureArray
from xgray.mechanism.tokens import token_texts
from xgray.stats.bootstrap import FloatArray
from xgray.stats.intervals import mean_of
from xgray.stats.values import MetricValue

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIDENCE = 0.95
"""Confidence of the intervals of mean activations, over prompts."""


@dataclass(frozen=True)
class ValueVector:
    """A potential source."""

    layer: int
    index: int
    """Index of the neuron in its layer, from 0."""
    cosine: float
    """Cosine of the value vector, as written into the residual stream, with the probe."""
    tokens: list[str]
    """The tokens that it promotes, the highest logit first."""

    @property
    def neuron(self) -> Neuron:
        return self.layer, self.index


@dataclass(frozen=True)
class LayerCosines:
    """The cosines of all value vectors of one layer with the probe."""

    num_neurons: int
    mean: float
    max: float


def potential_sources(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, w: FeatureArray, top_k: int, num_tokens: int
) -> tuple[list[ValueVector], list[LayerCosines]]:
    """Find the value vectors with the highest cosine with the probe.

    Args:
        w: the probe, ``(hidden_size,)``.
        top_k: number of value vectors to return, of all layers together.
        num_tokens: number of promoted tokens to return for each.

    Returns:
        The value vectors, the highest cosine first, and statistics of each layer.

    Raises:
        InputError: the probe has another width than the model, or is zero or not finite.
    """
    import torch

    direction = _unit_direction(w, model)
    layers: list[LayerCosines] = []
    neurons: list[Neuron] = []
    best = torch.empty(0, device=model.device)
    vectors = torch.empty(0, len(w), device=model.device)
    with torch.inference_mode():
        for layer, (module, projection) in enumerate(
            zip(transformer_layers(model), down_projections(model), strict=True)
        ):
            written = written_vectors(module, projection)
            lengths = torch.linalg.vector_norm(written, dim=1)
            cosines = torch.where(lengths > 0, written @ direction / lengths, 0)
            layers.append(LayerCosines(len(cosines), cosines.mean().item(), cosines.max().item()))
            layer_best, indices = cosines.topk(min(top_k, len(cosines)))
            neurons += [(layer, index) for index in indices.tolist()]
            best, order = torch.cat([best, layer_best]).topk(min(top_k, len(neurons)))
            neurons = [neurons[position] for position in order.tolist()]
            vectors = torch.cat([vectors, written[indices]])[order]
        block_size = max(layer.num_neurons for layer in layers)
        tokens = top_tokens(model, vectors, num_tokens, len(tokenizer), block_size)
    text_of = token_texts(tokenizer)
    sources = [
        ValueVector(*neuron, cosine, [text_of(token) for token in row])
        for neuron, cosine, row in zip(neurons, best.tolist(), tokens, strict=True)
    ]
    return sources, layers


def _unit_direction(w: FeatureArray, model: PreTrainedModel) -> torch.Tensor:
    """Return the probe's direction, of length 1, ``(hidden_size,)``.

    Raises:
        InputError: the probe has another width than the model, or is zero or not finite.
    """
    import torch

    hidden_size = model.config.get_text_config().hidden_size
    if w.shape != (hidden_size,):
        raise InputError(
            f"the probe has {len(w)} dimensions, but the model has {hidden_size}. Train a probe on this model."
        )
    if not (np.isfinite(w).all() and w.any()):
        raise InputError("the probe is no direction: its weights are 0 or not finite. Train it for more epochs.")
    direction = torch.from_numpy(w).to(model.device)
    return direction / direction.norm()


def top_tokens(
    model: PreTrainedModel,
    vectors: torch.Tensor,
    num_tokens: int,
    vocabulary_size: int,
    block_size: int,
) -> list[list[int]]:
    """Return, for each vector, the token ids with the highest logits under the unembedding matrix.

    Args:
        vectors: ``(num_vectors, hidden_size)``.
        num_tokens: number of tokens for each vector.
        vocabulary_size: further rows of the matrix, which some models have as padding, are no tokens.
        block_size: rows of the matrix that are multiplied at once; it does not change the result.
    """
    import torch

    unembedding = model.get_output_embeddings().weight[:vocabulary_size]
    logits = torch.empty(len(vectors), 0, device=vectors.device)
    tokens = torch.empty(len(vectors), 0, dtype=torch.long, device=vectors.device)
    for start in range(0, len(unembedding), block_size):
        block = unembedding[start : start + block_size].float()
        block_logits, rows = (vectors @ block.T).topk(min(num_tokens, len(block)), dim=1)
        logits, tokens = torch.cat([logits, block_logits], dim=1), torch.cat([tokens, rows + start], dim=1)
        logits, order = logits.topk(min(num_tokens, logits.shape[1]), dim=1)
        tokens = tokens.gather(1, order)
    return tokens.tolist()


def activation_intervals(activations: FloatArray) -> list[MetricValue]:
    """Return each neuron's mean activation over texts, with its interval over texts.

    Args:
        activations: ``(num_texts, num_neurons)``.
    """
    means: list[MetricValue] = []
    for column in activations.T:
        estimate = mean_of(column, "real")
        low, high = estimate.interval(CONFIDENCE) or (None, None)
        means.append({"value": estimate.value, "low": low, "high": high})
    return means


def overlap(given: Sequence[Neuron], found: Sequence[Neuron], num_neurons: int) -> Overlap:
    """Compare two lists of neurons: the size of their intersection, and their Jaccard index.

    Args:
        num_neurons: of the model. ``expected`` is the mean size of the intersection if ``found`` were sampled from them
            at random without replacement.
    """
    both, either = set(given) & set(found), set(given) | set(found)
    return {
        "num_found": len(found),
        "num_common": len(both),
        "jaccard": len(both) / len(either) if either else None,
        "expected": len(given) * len(found) / num_neurons,
    }
