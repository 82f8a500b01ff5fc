"""How pairs are arranged as tokens, and shared out over passes."""

import itertools
import random

import pytest

from xgray.train.packing import (
    ARRANGEMENTS,
    Tree,
    arrange,
    batches_by_tokens,
    num_tokens,
    split_evenly,
    split_within,
)
from xgray.train.pairs import TokenizedPair

PAIRS = [TokenizedPair([1, 2], [3, 4, 5], [6]), TokenizedPair([7], [8], [9, 9])]


def counted(arranged):
    """Return for each completion the counted tokens, each with the token that predicts it."""
    found = {}
    for (row, column), target, completion in zip(
        arranged.predictors, arranged.targets, arranged.completions, strict=True
    ):
        found.setdefault(completion, []).append((arranged.rows[row][column], target))
    return found


def test_a_shared_prompt_is_there_once():
    arranged = arrange(PAIRS, "shared", 100)
    assert arranged.rows == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 9]]
    assert arranged.trees == [Tree(2, (3, 1)), Tree(1, (1, 2))]


def test_packed_sequences_have_their_own_prompts():
    arranged = arrange(PAIRS, "packed", 100)
    assert arranged.rows == [[1, 2, 3, 4, 5, 1, 2, 6, 7, 8, 7, 9, 9]]
    assert arranged.trees == [Tree(5), Tree(3), Tree(2), Tree(3)]


def test_padded_rows_are_the_chosen_and_then_the_rejected_sequences():
    arranged = arrange(PAIRS, "padded", 100)
    assert arranged.rows == [[1, 2, 3, 4, 5], [7, 8], [1, 2, 6], [7, 9, 9]]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_completion_token_is_predicted_by_the_token_before_it(arrangement):
    assert counted(arrange(PAIRS, arrangement, 100)) == {
        0: [(2, 3), (3, 4), (4, 5)],
        1: [(7, 8)],
        2: [(2, 6)],
        3: [(7, 9), (9, 9)],
    }


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_what_is_beyond_the_limit_or_uncounted_or_first_is_not_counted(arrangement):
    cut = arrange(PAIRS, arrangement, 3)
    assert counted(cut) == {0: [(2, 3)], 1: [(7, 8)], 2: [(2, 6)], 3: [(7, 9), (9, 9)]}
    uncounted = arrange([TokenizedPair([1], [2, 3, 4], [5, 6], 1, 1)], arrangement, 100)
    assert counted(uncounted) == {0: [(2, 3), (3, 4)], 1: [(5, 6)]}
    without_prompt = arrange([TokenizedPair([], [2, 3, 4], [5, 6], 2, 0)], arrangement, 100)
    assert counted(without_prompt) == {0: [(3, 4)], 1: [(5, 6)]}


def test_a_prompt_counts_in_both_sequences():
    assert num_tokens(PAIRS[0], 100) == 5 + 3
    assert num_tokens(PAIRS[0], 4) == 4 + 3


def test_parts_are_even_complete_and_not_empty():
    generator = random.Random(0)
    for num_sizes, num_parts in itertools.product((1, 2, 7, 40), (1, 2, 5, 50)):
        sizes = [generator.randint(1, 60) for _ in range(num_sizes)]
        parts = split_evenly(sizes, num_parts)
        assert sorted(itertools.chain(*parts)) == list(range(num_sizes))
        assert len(parts) == min(num_parts, num_sizes)
        sums = [sum(sizes[index] for index in part) for part in parts]
        assert min(sums) > 0
        assert max(sums) - min(sums) <= max(sizes)


def test_parts_keep_the_limit_and_are_as_few_as_the_tokens_allow():
    sizes = [30, 30, 30, 10, 10, 10]
    assert len(split_within(sizes, 120)) == 1
    parts = split_within(sizes, 60)
    assert len(parts) == 2
    assert all(sum(sizes[index] for index in part) <= 60 for part in parts)
    assert len(split_within(sizes, 120, at_least=3)) == 3
    assert split_within([500, 1], 100) == [[0], [1]]


def test_batches_in_order():
    assert list(batches_by_tokens([5, 5, 5, 20, 1, 1], 10)) == [[0, 1], [2], [3], [4, 5]]
    assert list(batches_by_tokens([], 10)) == []
