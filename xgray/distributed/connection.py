"""Check that the workers of a training reach each other, before they load a model.

Without it a wrong network interface or a firewall shows as a training that does nothing: torch waits half an hour in
its first collective operation, and Ray Train then begins again.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from xgray.errors import StageError

if TYPE_CHECKING:
    import torch

CONNECT_SECONDS = 180.0
"""How long the first sum over all workers may take. They have met before, through the store on the first one."""


def check_connected(device: torch.device, seconds: float = CONNECT_SECONDS) -> None:
    """Add up one number over all workers of this process's group; every worker calls this.

    Args:
        device: on which this worker computes.
        seconds: how long it may take.

    Raises:
        StageError: it took longer.
        RuntimeError: torch says that a worker cannot be reached, for instance because it has died.
    """
    import torch.distributed as dist

    errors: list[Exception] = []
    thread = threading.Thread(target=_add_up, args=(device, errors), daemon=True)
    thread.start()  # in a thread, because NCCL connects within the call and takes no time limit
    thread.join(seconds)
    if thread.is_alive():
        backend = dist.get_backend()
        more = "; NCCL_DEBUG=INFO logs what is tried" if backend == "nccl" else ""
        raise StageError(
            f"train: {dist.get_world_size()} workers did not reach each other by {backend} within {seconds:g} s. "
            f"{backend.upper()}_SOCKET_IFNAME must name the network interface that the nodes share (ip addr shows "
            f"them), and no firewall may lie between them{more}. Then run the same command again."
        )
    for error in errors:
        raise error


def _add_up(device: torch.device, errors: list[Exception]) -> None:
    import torch
    import torch.distributed as dist

    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
        number = torch.ones(1, device=device)
        dist.all_reduce(number)
        number.item()  # waits until the sum has been computed
    except Exception as error:
        errors.append(error)
