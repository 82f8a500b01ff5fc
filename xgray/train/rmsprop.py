"""RMSprop that goes through memory once.

An update reads and writes arrays of a parameter's size several times over, and on a CPU it takes a quarter of a small
model's step. There PyTorch's fused kernel of Adam does it in one pass: without a first moment and without its
corrections, Adam is RMSprop. On a GPU a large parameter is updated block by block, so that the temporary copies are
those of a block and not of the embeddings. Every number is updated by itself, so blocks change none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from xgray.train.memory import CPU_BLOCK, GPU_BLOCK

CORRECTED = 1e9
"""A number of steps after which Adam's corrections, for moments that begin at 0, are 1."""


class BlockRMSprop(torch.optim.RMSprop):  # type: ignore[misc]
    """RMSprop without momentum and centring."""

    gradient_scale: Tensor | None = None
    """What the next step multiplies the gradients by, in place: clipping costs no pass over memory of its own."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """Update all parameters that have a gradient."""
        update_on_cpu = _CpuUpdate()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                state["step"] += 1
                tensors = (parameter, parameter.grad, state["square_avg"])
                is_flat = all(tensor.is_contiguous() for tensor in tensors)
                update = update_on_cpu if is_flat and parameter.device.type == "cpu" else _update
                for block, gradient, square in _blocks(tensors) if is_flat else [tensors]:
                    if self.gradient_scale is not None:
                        gradient.mul_(self.gradient_scale)
                    update(block, gradient, square, group)
        self.gradient_scale = None


def _update(block: Tensor, gradient: Tensor, square: Tensor, group: dict[str, Any]) -> None:
    names = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
    settings = {name: group[name] for name in names}
    steps = [torch.zeros(())]  # counted, but not looked at
    rmsprop([block], [gradient], [square], [], [], steps, foreach=False, **settings)


class _CpuUpdate:
    """Adam's fused kernel with one first moment for all blocks: it sets that to the gradient before it reads it.

    After a gradient that is not finite this would not hold; a training ends with such a step.
    """

    def __init__(self) -> None:
        self._moments: dict[torch.dtype, Tensor] = {}
        self._steps = [torch.tensor(CORRECTED)]

    def __call__(self, block: Tensor, gradient: Tensor, square: Tensor, group: dict[str, Any]) -> None:
        if block.dtype not in self._moments:
            self._moments[block.dtype] = block.new_zeros(CPU_BLOCK)
        torch._fused_adam_(
            [block],
            [gradient],
            [self._moments[block.dtype][: len(block)]],
            [square],
            [],
            self._steps,
            lr=group["lr"],
            beta1=0.0,
            beta2=group["alpha"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )


def _blocks(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    size = CPU_BLOCK if tensors[0].device.type == "cpu" else GPU_BLOCK
    yield from zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers of the gradients together.

    BLAS squares and adds at the speed of the memory; PyTorch's norm takes twice the time on a CPU. Sums are those of a
    block, added in float64, so that no large sum swallows small squares.
    """
    squares = []
    for gradient in gradients:
        if gradient.dtype == torch.float32 and gradient.is_contiguous():
            squares += [block.dot(block) for (block,) in _blocks((gradient,))]
        else:
            squares.append(gradient.float().pow(2).sum())
    return torch.stack(squares).double().sum().sqrt().float()
