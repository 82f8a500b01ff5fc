"""Group token sequences of different lengths into batches, and pad them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def by_length(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the indices of ``sequences`` in batches of at most ``size``, shortest first, to keep padding small."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def by_tokens(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of the indices of sequences with these lengths, the longest sequences first.

    A batch has at most ``max_tokens`` tokens, padding included, or consists of one sequence.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        size = max(1, max_tokens // lengths[order[start]])
        yield order[start : start + size]
        start += size


def padded(
    sequences: Sequence[Sequence[int]], device: torch.device, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token sequences to the longest of them.

    Args:
        sequences: Token ids of each sequence.
        device: Where the tensors are placed.
        left: Whether padding goes before the tokens rather than after them.

    Returns:
        Token ids and attention mask, both ``(batch, longest)``. The mask is 1 at tokens and 0 at padding; padding has
        token id 0, which no position attends to.
    """
    import torch

    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        columns = slice(ids.shape[1] - len(sequence), None) if left else slice(len(sequence))
        ids[row, columns] = torch.tensor(sequence, dtype=torch.long)
        mask[row, columns] = 1
    return ids.to(device), mask.to(device)


def token_positions(mask: torch.Tensor) -> torch.Tensor:
    """Return each token's position in its text, counted from 0, ``(batch, longest)``; padding gets any value."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
