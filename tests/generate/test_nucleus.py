"""The cut to the nucleus: by hand, and against one probability at a time."""

import pytest
import torch

from xgray.generate.nucleus import cut_to_nucleus


def kept(logits, top_p):
    return torch.isfinite(cut_to_nucleus(logits, top_p))


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.3, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])],
)
def test_smallest_set_that_has_the_probability(top_p, expected):
    probabilities = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    assert kept(probabilities.log(), top_p)[0].nonzero().flatten().tolist() == expected


def test_logits_inside_are_left_as_they_are():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    cut = cut_to_nucleus(logits, 0.9)
    inside = torch.isfinite(cut)
    assert torch.equal(cut[inside], logits[inside])


def test_as_many_tokens_as_probable_as_the_last_one_stay():
    assert kept(torch.tensor([[1.0, 0.0, 0.0, -9.0]]), 0.6).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 0.99])
def test_same_as_adding_up_one_token_after_the_other(top_p):
    logits = 3 * torch.randn(16, 500, generator=torch.Generator().manual_seed(0))
    for row, inside in zip(logits.double().softmax(-1).tolist(), kept(logits, top_p).tolist(), strict=True):
        total, expected = 0.0, set()
        for index in sorted(range(len(row)), key=row.__getitem__, reverse=True):
            if total >= top_p:
                break
            expected.add(index)
            total += row[index]
        assert {index for index, one in enumerate(inside) if one} == expected
