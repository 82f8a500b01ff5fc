"""The nucleus is that of transformers, which sorts the vocabulary."""

import pytest
import torch
from transformers import TopPLogitsWarper

from xgray.generate.top_p import NUM_LARGEST, keep_nucleus


def finite(logits):
    return logits.isfinite()


@pytest.mark.parametrize("vocabulary", [5, NUM_LARGEST, 50 * NUM_LARGEST])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.999])
def test_the_nucleus_is_that_of_a_sort(vocabulary, top_p):
    torch.manual_seed(0)
    # From all but one token to all tokens alike, so that some nuclei are larger than what is looked at first.
    spread = torch.tensor([[0.0], [0.1], [1.0], [3.0], [10.0], [100.0]])
    logits = spread * torch.randn(6, vocabulary)
    logits[1:, 0] = -torch.inf  # as other processors leave tokens out
    expected = TopPLogitsWarper(top_p)(None, logits.clone().double())
    kept = keep_nucleus(logits, top_p)
    # At the nucleus's edge the sums may round to either side of top_p, by a token that changes next to nothing.
    difference = finite(kept[1:]).sum(dim=1) - finite(expected[1:]).sum(dim=1)
    assert difference.abs().max() <= 1
    assert (finite(kept) != finite(expected))[1:].sum() == difference.abs().sum()
    assert torch.equal(kept[finite(kept)], logits[finite(kept)])
    # Of equal logits any may be left out, and float32 sums of thousands are off by a few of them.
    num_kept, num_expected = (int(finite(each[0]).sum()) for each in (kept, expected))
    assert num_kept == pytest.approx(num_expected, rel=1e-3, abs=1)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    logits = torch.tensor([[0.1], [3.0], [0.1], [10.0]]) * torch.randn(4, 8 * NUM_LARGEST)
    together = keep_nucleus(logits, 0.8)
    assert torch.equal(together, torch.cat([keep_nucleus(row[None], 0.8) for row in logits]))


def test_the_most_likely_token_is_always_kept():
    assert keep_nucleus(torch.tensor([[0.0, 9.0, 1.0]]), 0.1).tolist() == [[-torch.inf, 9.0, -torch.inf]]
