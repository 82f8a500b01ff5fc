"""Run models that are not trained: without gradients, and on a CPU with the faster library.

Imports torch: for functions that workers call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def inference() -> Iterator[None]:
    """Enter ``torch.inference_mode``, and :class:`OneDnnLinear` where PyTorch has oneDNN and no CUDA device.

    With models on CUDA the second mode would only cost a little time at every call of a torch function.
    """
    on_cpu = torch.backends.mkldnn.is_available() and not torch.cuda.is_available()
    with torch.inference_mode(), OneDnnLinear() if on_cpu else nullcontext():
        yield


class OneDnnLinear(TorchFunctionMode):  # type: ignore[misc]
    """Compute float32 linear layers on a CPU with oneDNN instead of MKL; the values agree up to rounding.

    MKL uses half the vector width on AMD processors: it took twice the time on an EPYC with AVX-512. In bfloat16
    PyTorch uses oneDNN on its own.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear and not kwargs and args[0].dtype is torch.float32 and args[0].device.type == "cpu":
            bias = args[2] if len(args) > 2 else None
            return torch.ops.mkldnn._linear_pointwise(args[0], args[1], bias, "none", [], "")
        return func(*args, **(kwargs or {}))
