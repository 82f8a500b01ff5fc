"""Top-p sampling without sorting the vocabulary.

vLLM on a CPU and transformers sort all logits of every token, which takes longer than a small model does. The nucleus
is nearly always among a few hundred tokens, which are found without a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_LARGEST = 256
"""How many of the largest logits are looked at first."""
FACTOR = 8
"""How many times as many are looked at where these are not enough."""


def keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return logits of which only the nucleus is finite (Holtzman et al., ICLR 2020).

    The nucleus is made of the most likely tokens, up to the first with which their probabilities sum to ``top_p``.

    Args:
        logits: ``(rows, vocabulary)``; of equal ones at the nucleus's edge any may be left out.
        top_p: in (0, 1].
    """
    if top_p >= 1:
        return logits
    kept = torch.full_like(logits, -torch.inf)
    total = logits.logsumexp(dim=-1, keepdim=True)
    rows, size = torch.arange(len(logits), device=logits.device), NUM_LARGEST
    while len(rows):
        size = min(size, logits.shape[1])
        values, tokens = logits[rows].topk(size, dim=-1)
        sums = (values - total[rows]).exp().cumsum(dim=-1)
        is_outside = sums.roll(1, dims=-1) >= top_p  # by the tokens before each
        is_outside[:, 0] = False
        is_whole = (sums[:, -1] >= top_p) | (size == logits.shape[1])
        values.masked_fill_(is_outside, -torch.inf)
        kept[rows[is_whole]] = kept[rows[is_whole]].scatter(-1, tokens[is_whole], values[is_whole])
        rows, size = rows[~is_whole], size * FACTOR
    return kept
