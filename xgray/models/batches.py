"""Token sequences of many lengths, cut into batches and padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def by_length(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of ``size``, shortest first, so that little is padding."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded(
    sequences: Sequence[Sequence[int]], device: torch.device, left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1 where there is a token), ``(batch, longest)``; padding is token 0, which nothing sees."""
    import torch

    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        where = slice(ids.shape[1] - len(sequence), None) if left else slice(len(sequence))
        ids[row, where] = torch.tensor(sequence, dtype=torch.long)
        mask[row, where] = 1
    return ids.to(device), mask.to(device)


def token_positions(mask: torch.Tensor) -> torch.Tensor:
    """Each token's place in its own text, from 0, ``(batch, longest)``; what padding gets does not matter."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
