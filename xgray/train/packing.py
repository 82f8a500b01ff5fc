"""Arrange preference pairs as tokens for a model: padded rows, packed sequences, or packed pairs that share a prompt.

    padded   one row for each sequence      packed   prompt chosen prompt rejected prompt chosen …
             prompt chosen   · · ·          shared   prompt chosen rejected prompt chosen rejected …
             prompt rejected · · ·

A packed row holds *trees*: a stem, and branches that see the stem and themselves, with positions that go on from the
stem. In ``shared`` a tree is a prompt with two branches, and in ``packed`` it is a whole sequence without branches. All
arrangements give the same log-probabilities; they differ in the number of tokens that the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from xgray.train.pairs import TokenizedPair

Arrangement = Literal["shared", "packed", "padded"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("shared", "packed", "padded")
"""From the fewest computed tokens to the most."""


@dataclass(frozen=True)
class Tree:
    """A part of a packed row that sees nothing outside itself."""

    stem: int
    """The number of tokens that all branches see."""
    branches: tuple[int, ...] = ()
    """The number of tokens of each branch, in the order in which they follow the stem."""

    def __len__(self) -> int:
        return self.stem + sum(self.branches)


@dataclass(frozen=True)
class Arranged:
    """The tokens of a batch of n pairs, and where its completions' tokens are predicted."""

    rows: list[list[int]]
    """Token ids: one packed row, or 2n rows of different lengths, first those of the chosen completions."""
    trees: list[Tree] | None
    """The trees of the packed row; None for padded rows."""
    predictors: list[tuple[int, int]]
    """The row and column of the token whose output predicts each counted token."""
    targets: list[int]
    """The counted tokens."""
    completions: list[int]
    """The completion that each counted token belongs to: from 0 to n - 1 chosen, from n to 2n - 1 rejected."""


def arrange(pairs: Sequence[TokenizedPair], arrangement: Arrangement, max_length: int) -> Arranged:
    """Arrange a batch of pairs.

    Tokens beyond ``max_length`` of a sequence are cut off. A sequence's first token is never counted: nothing predicts
    it.
    """
    arranged = Arranged([[]] if arrangement != "padded" else [], [] if arrangement != "padded" else None, [], [], [])
    for index, pair in enumerate(pairs):
        prompt = pair.prompt_ids[:max_length]
        chosen, rejected = (ids[: max_length - len(prompt)] for ids in (pair.chosen_ids, pair.rejected_ids))
        sides = (
            (chosen, index, pair.chosen_uncounted),
            (rejected, len(pairs) + index, pair.rejected_uncounted),
        )
        if arrangement == "shared":
            _add_tree(arranged, prompt, sides)
        else:
            for side in sides:
                _add_sequence(arranged, prompt, *side)
    if arrangement == "padded":  # rows are alternately chosen and rejected up to here
        order = [*range(0, 2 * len(pairs), 2), *range(1, 2 * len(pairs), 2)]
        rows = [arranged.rows[row] for row in order]
        predictors = [(order.index(row), column) for row, column in arranged.predictors]
        return Arranged(rows, None, predictors, arranged.targets, arranged.completions)
    return arranged


def _add_tree(arranged: Arranged, prompt: list[int], sides: Sequence[tuple[list[int], int, int]]) -> None:
    row, trees = arranged.rows[0], arranged.trees
    assert trees is not None
    start = len(row)
    row += prompt
    for ids, completion, num_uncounted in sides:
        branch = len(row)
        row += ids
        first = max(num_uncounted, 1 - len(prompt))
        for position in range(first, len(ids)):
            predictor = branch + position - 1 if position else start + len(prompt) - 1
            _count(arranged, 0, predictor, ids[position], completion)
    trees.append(Tree(len(prompt), tuple(len(ids) for ids, _, _ in sides)))


def _add_sequence(arranged: Arranged, prompt: list[int], ids: list[int], completion: int, num_uncounted: int) -> None:
    if arranged.trees is None:
        arranged.rows.append([])
    else:
        arranged.trees.append(Tree(len(prompt) + len(ids)))
    row = arranged.rows[-1]
    start = len(row)
    row += prompt + ids
    for position in range(max(len(prompt) + num_uncounted, 1), len(prompt) + len(ids)):
        _count(arranged, len(arranged.rows) - 1, start + position - 1, row[start + position], completion)


def _count(arranged: Arranged, row: int, column: int, target: int, completion: int) -> None:
    arranged.predictors.append((row, column))
    arranged.targets.append(target)
    arranged.completions.append(completion)


def num_tokens(pair: TokenizedPair, max_length: int) -> int:
    """Return the number of tokens of both sequences of a pair, the prompt counted twice."""
    lengths = (len(pair.prompt_ids) + len(ids) for ids in (pair.chosen_ids, pair.rejected_ids))
    return sum(min(length, max_length) for length in lengths)


def split_evenly(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Return the indices of ``sizes`` in at most ``num_parts`` parts of about the same sum, none of them empty.

    The largest go first, each to the smallest part so far (Graham's longest processing time rule). The result depends
    on ``sizes`` alone.
    """
    parts: list[list[int]] = [[] for _ in range(min(num_parts, len(sizes)))]
    sums = [0] * len(parts)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        part = min(range(len(parts)), key=lambda part: (sums[part], len(parts[part]), part))
        parts[part].append(index)
        sums[part] += sizes[index]
    return [sorted(part) for part in parts]


def split_within(sizes: Sequence[int], max_size: int, at_least: int = 1) -> list[list[int]]:
    """Return the indices of ``sizes`` in as few parts of at most ``max_size`` as :func:`split_evenly` finds.

    Args:
        sizes: A single one above the limit is a part by itself.
        max_size: The limit of a part's sum.
        at_least: The least number of parts, of which none is empty.
    """
    num_parts = max(at_least, -(-sum(sizes) // max_size))
    while True:
        parts = split_evenly(sizes, num_parts)
        if len(parts) == len(sizes) or all(sum(sizes[index] for index in part) <= max_size for part in parts):
            return parts
        num_parts += 1


def batches_by_tokens(sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of ``sizes`` in order, in batches whose sum is at most ``max_tokens``.

    A single size above the limit is a batch by itself.
    """
    batch: list[int] = []
    total = 0
    for index, size in enumerate(sizes):
        if batch and total + size > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += size
    if batch:
        yield batch
