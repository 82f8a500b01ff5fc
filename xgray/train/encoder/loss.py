"""The loss of a scorer's training: binary cross-entropy on soft targets, over the attributes that were judged."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def summed_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of the binary cross-entropies of all judged attributes, a scalar in float32.

    The loss of a batch is this sum divided by :func:`total_weight` of the same batch, so each judgement counts as much
    as its text's weight, however many attributes a source judges. A batch can be cut into parts whose sums add up.

    Args:
        logits: ``(batch, num_attributes)``.
        targets: ``(batch, num_attributes)`` in [0, 1], NaN where an attribute was not judged.
        weights: ``(batch,)``, of the texts.
    """
    is_judged = ~targets.isnan()
    values = binary_cross_entropy_with_logits(logits.float(), targets.nan_to_num(), reduction="none")
    return (values * is_judged * weights[:, None]).sum()


def total_weight(targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of the weights of all judgements, a scalar; shapes as in :func:`summed_loss`."""
    return ((~targets.isnan()) * weights[:, None]).sum()
