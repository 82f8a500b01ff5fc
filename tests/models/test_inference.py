"""Linear layers computed with oneDNN have the same values, for every shape and way of calling the function."""

import pytest
import torch
import torch.nn.functional as F

from xgray.models.inference import inference


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_layers_have_the_values_of_float64_arithmetic(shape, with_bias):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 7, bias=with_bias)
    inputs = torch.randn(*shape)
    expected = inputs.double() @ layer.weight.double().T + (layer.bias.double() if with_bias else 0)
    with inference():
        outputs = layer(inputs)
        by_keyword = F.linear(inputs, layer.weight, bias=layer.bias)
        transposed = layer(inputs.expand(2, *shape).transpose(0, -2)) if len(shape) > 1 else None
    assert outputs.shape == (*shape[:-1], 7)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs.double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(by_keyword, outputs)
    if transposed is not None:
        torch.testing.assert_close(transposed.transpose(0, -2)[0], outputs)


def test_float64_and_bfloat16_are_unchanged():
    layer, inputs = torch.nn.Linear(3, 7).double(), torch.randn(2, 3).double()
    expected = layer(inputs)
    with inference():
        assert torch.equal(layer(inputs), expected)
        assert layer.bfloat16()(inputs.bfloat16()).dtype is torch.bfloat16
