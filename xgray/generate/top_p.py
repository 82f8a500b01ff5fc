"""Top-p sampling without sorting the vocabulary.

vLLM on a CPU and transformers sort all logits of every token, which takes about as long as a model of 135M parameters.
The nucleus is nearly always among a few hundred tokens, which are found without a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_LARGEST = 256
"""How many of the largest logits are looked at first."""
FACTOR = 8
"""How many times as many are looked at where these are not enough."""


def keep_nucleus(logits: Tensor, top_p: float, num_largest: int = NUM_LARGEST) -> Tensor:
    """Return logits of which only the nucleus is finite (Holtzman et al., ICLR 2020).

    The nucleus is made of the most likely tokens, up to the first with which their probabilities sum to ``top_p``.

    Args:
        logits: ``(rows, vocabulary)``; of equal ones at the nucleus's edge any may be left out.
        top_p: in (0, 1].
        num_largest: how many of the largest logits are looked at first.
    """
    if top_p >= 1:
        return logits
    size = min(num_largest, logits.shape[1])
    values, tokens = logits.topk(size, dim=-1)
    sums = (values - logits.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    is_outside = sums.roll(1, dims=-1) >= top_p  # by the tokens before each
    is_outside[:, 0] = False
    kept = torch.full_like(logits, -torch.inf)
    kept.scatter_(-1, tokens, values.masked_fill(is_outside, -torch.inf))
    rows = torch.nonzero(sums[:, -1] < top_p).flatten()
    if len(rows) and size < logits.shape[1]:
        kept[rows] = keep_nucleus(logits[rows], top_p, size * FACTOR)
    return kept
