"""Batches of token sequences."""

from xgray.models.batches import by_tokens


def test_batches_hold_similar_lengths_and_at_most_their_tokens():
    lengths = [3, 9, 1, 4, 20, 2, 8, 1]
    batches = list(by_tokens(lengths, 12))
    assert [[lengths[index] for index in batch] for batch in batches] == [[20], [9], [8], [4, 3, 2], [1, 1]]
    assert sorted(index for batch in batches for index in batch) == list(range(8))
