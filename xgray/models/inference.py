"""How models are run that nobody trains: without gradients, and on a CPU by the faster library.

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
    """``torch.inference_mode``, with :class:`OneDnnLinear` where PyTorch has oneDNN and no CUDA device.

    Where models lie on CUDA the mode would only cost time, a little at every call of a torch function.
    """
    on_cpu = torch.backends.mkldnn.is_available() and not torch.cuda.is_available()
    with torch.inference_mode(), OneDnnLinear() if on_cpu else nullcontext():
        yield


class OneDnnLinear(TorchFunctionMode):  # type: ignore[misc]
    """Linear layers in float32 on a CPU by oneDNN instead of MKL: the same values to rounding.

    MKL keeps AMD processors to half their vector width: measured at twice the time on an EPYC with AVX-512. In
    bfloat16 PyTorch takes oneDNN by itself.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.linear and not kwargs and args[0].dtype is torch.float32 and args[0].device.type == "cpu":
            bias = args[2] if len(args) > 2 else None
            return torch.ops.mkldnn._linear_pointwise(args[0], args[1], bias, "none", [], "")
        return func(*args, **(kwargs or {}))
