"""The update in one pass is that of torch's RMSprop, but for the rounding of single numbers."""

import pytest
import torch

from xgray.train import rmsprop
from xgray.train.memory import CPU_BLOCK
from xgray.train.rmsprop import BlockRMSprop, gradient_norm


@pytest.mark.parametrize("as_on_gpu", [False, True])
def test_the_update_is_that_of_rmsprop(as_on_gpu, monkeypatch):
    if as_on_gpu:
        monkeypatch.setattr(rmsprop, "_CpuUpdate", lambda: rmsprop._update)
    torch.manual_seed(0)
    weights = [torch.randn(2 * CPU_BLOCK + 7), torch.randn(3, 5).t(), torch.randn(4), torch.randn(2, 2)]
    updated = {}
    for kind in (torch.optim.RMSprop, BlockRMSprop):
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        optimizer = kind(parameters, lr=1e-3, weight_decay=0.05, foreach=False)
        generator = torch.Generator().manual_seed(1)
        for step in range(3):
            for parameter in parameters[:-1]:  # the last has no gradient
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            if step == 1 and kind is BlockRMSprop:
                optimizer.gradient_scale = torch.tensor(0.3)
            elif step == 1:
                for parameter in parameters[:-1]:
                    parameter.grad *= torch.tensor(0.3)
            optimizer.step()
        states = [optimizer.state[parameter]["square_avg"] for parameter in parameters[:-1]]
        assert all(optimizer.state[parameter]["step"] == 3 for parameter in parameters[:-1])
        assert parameters[-1] not in optimizer.state
        updated[kind] = [*parameters, *states]
    plain, blocks = updated.values()
    for expected, found in zip(plain, blocks, strict=True):
        if as_on_gpu:
            assert torch.equal(found, expected), "blocks change no bit"
        torch.testing.assert_close(found, expected, rtol=3e-7, atol=1e-9)
    assert not torch.equal(plain[0], weights[0])


def test_the_norm_is_that_of_all_numbers():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2 * CPU_BLOCK + 7, generator=generator), torch.randn(3, 5, generator=generator).t()]
    gradients.append(torch.randn(4, generator=generator).bfloat16())
    exact = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    assert gradient_norm(gradients).item() == pytest.approx(exact.item(), rel=1e-6)
    assert gradient_norm([torch.tensor([3.0, 4.0]), torch.full((2,), float("inf"))]).isinf()
