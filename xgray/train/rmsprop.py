"""RMSprop that updates a large parameter block by block, so that on a CPU a block stays in the cache.

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

BLOCK = 2**18
"""Numbers of a block: three arrays of it are 3 MiB."""


class BlockRMSprop(torch.optim.RMSprop):
    """RMSprop without momentum and centring, in blocks where a parameter is on a CPU."""

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
                    steps = [torch.zeros(())]  # counted, but not looked at
                    rmsprop([block], [gradient], [square], [], [], steps, foreach=False, **settings)


def _blocks(parameter: Tensor, gradient: Tensor, square: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    tensors = (parameter, gradient, square)
    if parameter.device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    yield from zip(*(tensor.view(-1).split(BLOCK) for tensor in tensors), strict=True)
