"""Errors of workers as the driver reports them."""

import torch

from xgray.distributed.failures import Failure
from xgray.errors import InputError


def test_a_full_gpu_is_reported_with_its_sizes_and_what_to_do():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.57 GiB of which 1.20 GiB is "
        "free. Including non-PyTorch memory, this process has 22.30 GiB memory in use. Of the allocated memory"
    )
    failure = Failure.of(error)
    assert failure.message.startswith("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
    assert "1.20 GiB is free. Other processes may hold" in failure.message
    assert "Of the allocated memory" not in failure.message
    assert isinstance(failure.error(), InputError)
