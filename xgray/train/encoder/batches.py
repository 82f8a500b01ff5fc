"""The batches of a training: texts of similar length together, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

BUCKET_BATCHES = 50
"""Batches whose texts are sorted by length together. More would save a little padding and mix the texts less."""


def epoch_batches(lengths: IntArray, batch_size: int, seed: int, epoch: int) -> list[IntArray]:
    """Return the batches of one epoch, each ``(batch_size,)`` indices; what does not fill a batch is left out.

    The texts are shuffled, sorted by length within buckets of ``BUCKET_BATCHES`` batches, cut into batches, and the
    batches are shuffled. Within a batch the longest text is first.

    Args:
        lengths: tokens of each text, ``(n,)``.
        batch_size: texts in a batch.
        seed: the training's seed.
        epoch: the number of the epoch, from 0.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    bucket = batch_size * BUCKET_BATCHES
    batches: list[IntArray] = []
    for start in range(0, len(order), bucket):
        indices = order[start : start + bucket]
        indices = indices[np.argsort(-lengths[indices], kind="stable")]
        batches += list(indices.reshape(-1, batch_size))
    return [batches[position] for position in generator.permutation(len(batches))]


def passes(lengths: Sequence[int], batch_tokens: int) -> Iterator[slice]:
    """Yield slices of sequences that are sorted from long to short, each for one pass through the model.

    A slice has at most ``batch_tokens`` tokens, padding included, or consists of one sequence.
    """
    start = 0
    while start < len(lengths):
        size = max(1, batch_tokens // lengths[start])
        yield slice(start, min(start + size, len(lengths)))
        start += size
