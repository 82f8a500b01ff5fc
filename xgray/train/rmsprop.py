"""RMSprop that updates a large parameter block by block.

On a CPU a block stays in the cache; on a GPU the update's temporary copies are those of a block, not of the embeddings.

An update reads and writes five arrays of a parameter's size several times over. Parameters that do not fit into the
cache are read from memory each time; a block is read once. Every number is updated by itself, so the results are those
of :class:`torch.optim.RMSprop`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.rmsprop import rmsprop

from xgray.train.memory import CPU_BLOCK, GPU_BLOCK


class BlockRMSprop(torch.optim.RMSprop):  # type: ignore[misc]
    """RMSprop without momentum and centring."""

    gradient_scale: Tensor | None = None
    """What the next step multiplies the gradients by, in place: clipping costs no pass over memory of its own."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            names = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")
            settings = {name: group[name] for name in names}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                state["step"] += 1
                for block, gradient, square in _blocks(parameter, parameter.grad, state["square_avg"]):
                    if self.gradient_scale is not None:
                        gradient.mul_(self.gradient_scale)
                    steps = [torch.zeros(())]  # counted, but not looked at
                    rmsprop([block], [gradient], [square], [], [], steps, foreach=False, **settings)
        self.gradient_scale = None


def _blocks(parameter: Tensor, gradient: Tensor, square: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    tensors = (parameter, gradient, square)
    if not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    block = CPU_BLOCK if parameter.device.type == "cpu" else GPU_BLOCK
    yield from zip(*(tensor.view(-1).split(block) for tensor in tensors), strict=True)
