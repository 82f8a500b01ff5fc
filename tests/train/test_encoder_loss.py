"""The loss against values computed by hand: soft targets, the mask and the weights."""

import math

import pytest
import torch

from xgray.train.encoder.batches import epoch_batches, passes
from xgray.train.encoder.fine_tune import is_out_of_patience, rate_factor
from xgray.train.encoder.loss import summed_loss, total_weight

NAN = math.nan
LOGITS = torch.tensor([[0.0, 5.0], [math.log(3), 0.0]])
TARGETS = torch.tensor([[1.0, NAN], [0.5, 0.25]])
WEIGHTS = torch.tensor([1.0, 2.0])


def test_loss_by_hand():
    """At logit 0 the loss is ln 2 whatever the target; at probability 3/4 and target 1/2 it is -ln(3/16) / 2."""
    expected = math.log(2) + 2 * (-0.5 * math.log(3 / 16)) + 2 * math.log(2)
    assert summed_loss(LOGITS, TARGETS, WEIGHTS).item() == pytest.approx(expected, rel=1e-6)
    assert total_weight(TARGETS, WEIGHTS).item() == 1 + 2 + 2


def test_an_attribute_that_was_not_judged_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    summed_loss(logits, TARGETS, WEIGHTS).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    # The derivative is weight times (probability - target).
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.0], [2 * 0.25, 2 * 0.25]]))


def test_a_batch_can_be_cut():
    parts = sum(summed_loss(LOGITS[row : row + 1], TARGETS[row : row + 1], WEIGHTS[row : row + 1]) for row in (0, 1))
    torch.testing.assert_close(parts, summed_loss(LOGITS, TARGETS, WEIGHTS))


def test_batches_hold_texts_of_similar_length_once_each():
    lengths = torch.randint(3, 200, (1000,), generator=torch.Generator().manual_seed(0)).numpy()
    batches = epoch_batches(lengths, 16, seed=0, epoch=0)
    indices = [index for batch in batches for index in batch.tolist()]
    assert len(batches) == 62
    assert len(set(indices)) == len(indices) == 992
    for batch in batches:
        assert (lengths[batch][:-1] >= lengths[batch][1:]).all()
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths[indices].sum()
    again = epoch_batches(lengths, 16, seed=0, epoch=0)
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))
    assert any((one != other).any() for one, other in zip(batches, epoch_batches(lengths, 16, 0, 1), strict=True))


def test_passes_stay_within_their_tokens():
    lengths = [9, 4, 4, 4, 1, 1]
    assert [lengths[each] for each in passes(lengths, 8)] == [[9], [4, 4], [4, 1], [1]]


def test_the_rate_rises_and_falls():
    factors = [rate_factor(step, 10, 0.2) for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rate_factor(0, 10, 0.0) == 1


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [([], 1, False), ([1.0], 1, False), ([1.0, 1.0], 1, True), ([3, 2, 2.5, 1.9], 2, False), ([1, 2, 3], None, False)],
)
def test_patience(losses, patience, expected):
    assert is_out_of_patience(losses, patience) is expected
