"""Workers of a training that cannot reach each other end with the reason, and do not hang."""

import time
from datetime import timedelta

import pytest

from tests.processes import start_python
from xgray.distributed.connection import check_connected
from xgray.errors import StageError

SECOND = """
import sys, time, torch, torch.distributed as dist
from datetime import timedelta
dist.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2, timeout=timedelta(seconds=60))
dist.all_reduce(torch.ones(1))
time.sleep(60)
"""
"""The other worker: it takes part in one sum, and then in no other."""


@pytest.mark.slow
def test_a_worker_that_cannot_be_reached_ends_the_training_with_the_reason(tmp_path):
    import torch
    import torch.distributed as dist

    method = f"file://{tmp_path / 'store'}"
    second = start_python("-c", SECOND, method)
    try:
        dist.init_process_group("gloo", init_method=method, rank=0, world_size=2, timeout=timedelta(seconds=60))
        check_connected(torch.device("cpu"))
        began = time.monotonic()
        with pytest.raises(
            StageError, match=r"2 workers did not reach each other by gloo within 1 s.*GLOO_SOCKET_IFNAME"
        ):
            check_connected(torch.device("cpu"), seconds=1)
        assert time.monotonic() - began < 5
    finally:
        second.kill()
        second.wait()
        dist.destroy_process_group()
