"""Check the GPUs that Ray gives to a worker."""

from __future__ import annotations

import socket

import ray

from xgray.errors import InputError
from xgray.models.cuda import check_cuda


def check_gpus() -> None:
    """Refuse to go on with a GPU that Ray gave to this worker and that PyTorch cannot use.

    Raises:
        InputError: as :func:`xgray.models.cuda.check_cuda`, with the name of this machine.
    """
    if ray.get_gpu_ids():
        import torch

        try:
            check_cuda(torch.version.cuda)
        except InputError as error:
            raise InputError(f"{socket.gethostname()}: {error}") from None
