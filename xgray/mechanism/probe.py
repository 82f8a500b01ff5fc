"""The probe: a direction ``w`` in the residual stream that tells toxic texts from others, ``p(toxic | x) = s(w . x)``.

x is the mean, over a text's tokens, of what the last block leaves in the residual stream, before the model's final
norm: that is the space which value vectors write into, so that a cosine with w says what they add. The paper's script
takes what the norm makes of it (``transformer(ids)[0]``); so does the protocol ``released``. There is no bias, as in
the paper.

The model is frozen, so a text's x is always the same: it is computed once, and all epochs run on the stored ones. The
result is that of training through the model. What is kept is the last epoch: the held-out texts then choose nothing,
and what is measured on them is of texts that the probe has not seen. ``released`` keeps the epoch of lowest loss on
them, as the script does, so that its validation figures flatter it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xgray.config import Probe, Switch
from xgray.errors import InputError
from xgray.mechanism.neurons import blocks
from xgray.models.batches import by_length, padded
from xgray.models.load import context_length
from xgray.stats.auc import BoolArray, auc_against_labels
from xgray.stats.bootstrap import FloatArray, draw_seed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FeatureArray = npt.NDArray[np.float32]

LEARNING_RATES = {"corrected": 1e-4, "released": 1e-6}
NUM_BINS = 10
"""Of predicted probabilities, equally wide."""

Labelled = tuple[FeatureArray, BoolArray]
"""Texts' x, ``(num_texts, hidden_size)``, and whether each is toxic, ``(num_texts,)``."""


@dataclass(frozen=True)
class Trained:
    w: FeatureArray
    """``(hidden_size,)``, as it was after the epoch that is kept."""
    epoch: int
    """That epoch, from 1."""
    losses: list[float]
    """Of each epoch, the mean over the texts at the time of their step."""
    validation_losses: list[float]
    """Of the held-out texts after each epoch."""


def learning_rate(section: Probe) -> float:
    return section.learning_rate or LEARNING_RATES[section.protocol]


def text_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_tokens: int,
    batch_size: int,
    protocol: Switch = "corrected",
) -> tuple[FeatureArray, BoolArray]:
    """Each text's x, ``(num_texts, hidden_size)``, and whether it lost its end, ``(num_texts,)``.

    Texts of like length share a batch.

    Args:
        max_tokens: of a text; the model's context is a limit as well.
        protocol: whether x is taken before the model's final norm, or after it (``released``).

    Raises:
        InputError: a text has no tokens, or the model overflows on it.
    """
    from xgray.models.inference import inference

    limit = min(max_tokens, context_length(model.config))
    tokens = tokenizer(list(texts), verbose=False)["input_ids"]
    if [] in tokens:
        raise InputError(f"a text has no tokens in this model's vocabulary: {texts[tokens.index([])][:40]!r}")
    kept = [one[:limit] for one in tokens]
    features = np.empty((len(texts), model.config.get_text_config().hidden_size), np.float32)
    with inference():
        for rows in by_length(kept, batch_size):
            # Padded on the right, where a causal model's tokens do not see it.
            inputs, mask = padded([kept[row] for row in rows], model.device)
            features[rows] = mean_residual(model, inputs, mask, protocol).cpu().numpy()
    if not np.isfinite(features).all():
        raise InputError(f"the residual stream overflows in {model.dtype}; set model.dtype to bfloat16 or float32")
    return features, np.array([len(one) > limit for one in tokens])


def mean_residual(
    model: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor, protocol: Switch = "corrected"
) -> torch.Tensor:
    """The mean over the tokens of each row, ``(batch, hidden_size)``, float32.

    It is that of the last block's output or, as the released script has it, of what the final norm makes of it.

    Args:
        inputs: ``(batch, tokens)``, padded on the right.
        mask: ``(batch, tokens)``, 0 for padding, which has no part in the mean.
    """
    weights = mask.unsqueeze(-1).float()
    if protocol == "released":
        states = model.base_model(input_ids=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    else:
        states = _last_block_output(model, inputs, mask)
    return (states.float() * weights).sum(1) / weights.sum(1)


def _last_block_output(model: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks(model)[-1].register_forward_hook(keep)
    try:
        model.base_model(input_ids=inputs, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    return kept[0]


def epochs(num_texts: int, section: Probe, seed: int) -> Iterator[list[npt.NDArray[np.int64]]]:
    """The batches of each epoch, as positions of texts, in an order that the seed says."""
    random = np.random.default_rng(draw_seed(seed, "probe"))
    for _ in range(section.epochs):
        order = random.permutation(num_texts)
        yield [order[start : start + section.batch_size] for start in range(0, num_texts, section.batch_size)]


def train_probe(fit: Labelled, held_out: Labelled, section: Probe, seed: int) -> Trained:
    """The probe after Adam on binary cross-entropy, from 0: of the last epoch or, as released, of the best one.

    Args:
        held_out: not trained on; their loss is told, and chooses the epoch where the protocol is ``released``.
    """
    import torch
    import torch.nn.functional as F

    (inputs, labels), (others, other_labels) = (
        (torch.from_numpy(features), torch.from_numpy(toxic.astype(np.float32))) for features, toxic in (fit, held_out)
    )
    w = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=learning_rate(section))
    losses: list[float] = []
    validation_losses: list[float] = []
    kept, epoch = w.detach().clone(), 0
    for batches in epochs(len(inputs), section, seed):
        total = 0.0
        for rows in batches:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(inputs[rows] @ w, labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(inputs))
        now = w.detach().clone()
        validation = F.binary_cross_entropy_with_logits(others @ now, other_labels).item()
        if section.protocol == "corrected" or validation < min(validation_losses, default=float("inf")):
            kept, epoch = now, len(losses)
        validation_losses.append(validation)
    return Trained(kept.numpy(), epoch, losses, validation_losses)


def logits(features: FeatureArray, w: FeatureArray) -> FloatArray:
    """``w . x`` of each text, ``(num_texts,)``: above 0 where toxic is likelier."""
    return features.astype(np.float64) @ w.astype(np.float64)


def validation_metrics(scores: FloatArray, toxic: BoolArray) -> dict[str, Any]:
    """Accuracy, AUC and loss of the logits of held-out texts, with 95 % intervals, and how well they are calibrated."""
    from scipy.special import expit, log_expit
    from scipy.stats import binomtest

    right = int(((scores >= 0) == toxic).sum())
    accuracy = binomtest(right, len(toxic)).proportion_ci(0.95, method="wilson")
    auc = auc_against_labels(scores, toxic)
    error, bins = calibration(expit(scores), toxic)
    return {
        "num_toxic": int(toxic.sum()),
        "num_benign": int((~toxic).sum()),
        "accuracy": {"value": right / len(toxic), "low": float(accuracy.low), "high": float(accuracy.high)},
        "majority": max(float(toxic.mean()), 1 - float(toxic.mean())),
        "auc": {"value": auc.value, "low": auc.low, "high": auc.high},
        "loss": float(-log_expit(np.where(toxic, scores, -scores)).mean()),
        "calibration_error": error,
        "bins": bins,
    }


def calibration(probabilities: FloatArray, toxic: BoolArray) -> tuple[float, list[dict[str, Any]]]:
    """The expected calibration error of ``(n,)`` probabilities of toxic, and the bins that it is made of.

    It is the mean, over texts, of the distance between their bin's mean probability and its share of toxic texts
    (Naeini et al. 2015).
    """
    bin_of = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for at in range(NUM_BINS):
        own = bin_of == at
        if own.any():
            bins.append(
                {
                    "low": at / NUM_BINS,
                    "high": (at + 1) / NUM_BINS,
                    "num_texts": int(own.sum()),
                    "mean_probability": float(probabilities[own].mean()),
                    "share_toxic": float(toxic[own].mean()),
                }
            )
    gaps = [one["num_texts"] * abs(one["mean_probability"] - one["share_toxic"]) for one in bins]
    return sum(gaps) / len(toxic), bins
