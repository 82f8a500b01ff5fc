"""Linear layers by the faster library: the same values, whatever the shape and however the function is called."""

import pytest
import torch
import torch.nn.functional as F

from xgray.models.inference import inference


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_layers_give_the_same_values(shape, with_bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 7, bias=with_bias)
    inputs = torch.randn(*shape)
    expected = inputs.double() @ layer.weight.double().T + (layer.bias.double() if with_bias else 0)
    with inference():
        found = layer(inputs)
        named = F.linear(inputs, layer.weight, bias=layer.bias)
        transposed = layer(inputs.expand(2, *shape).transpose(0, -2)) if len(shape) > 1 else None
    assert found.shape == (*shape[:-1], 7)
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(named, found)
    if transposed is not None:
        torch.testing.assert_close(transposed.transpose(0, -2)[0], found)


def test_other_precisions_are_left_alone():
    layer, inputs = torch.nn.Linear(3, 7).double(), torch.randn(2, 3).double()
    expected = layer(inputs)
    with inference():
        assert torch.equal(layer(inputs), expected)
        assert layer.bfloat16()(inputs.bfloat16()).dtype is torch.bfloat16
