"""Joining a Ray cluster, or starting a local one for this process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from xgray.errors import InputError

PASSED_ON = ("XGRAY_", "HF_", "VLLM_", "PERSPECTIVE_")
"""Environment variables with these beginnings are given to the workers of a cluster; a local one inherits all."""


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address`` or ``RAY_ADDRESS``, otherwise a local one.

    A Ray that is up already is used and left as it is.

    Raises:
        InputError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS")
    variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its warnings are about Ray's inside
    try:
        ray.init(
            address=target or "local",
            include_dashboard=None if target else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": variables} if target and variables else None,
        )
    except ConnectionError as error:
        raise InputError(f"--address: no Ray cluster answers at {target}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def total(resource: str) -> int:
    """How much of a resource (``CPU``, ``GPU``) the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def cores() -> int:
    """The cores of the machine that has the most."""
    return max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])


def thread_environment(num_threads: int) -> dict[str, dict[str, str]]:
    """The runtime environment of a worker that computes with this many threads.

    They sleep while they wait for each other: waiting busily, as is the default, takes the cores from the other
    workers, and was 10 times slower where these needed them.
    """
    return {"env_vars": {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}}
