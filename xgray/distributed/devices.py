"""Check the GPUs that Ray gives to a worker."""

from __future__ import annotations

import ray

from xgray.models.cuda import check_cuda


def check_gpus() -> None:
    """Refuse to go on with a GPU that Ray gave to this worker and that PyTorch cannot use.

    Raises:
        InputError: as :func:`xgray.models.cuda.check_cuda`.
    """
    if ray.get_gpu_ids():
        import torch

        check_cuda(torch.version.cuda)
