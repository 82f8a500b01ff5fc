"""Joining a Ray cluster, or starting a local one for this process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from types import FrameType

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.distributed.job_environment import job_variables
from xgray.distributed.keys import KEYS, handed_over, is_secret
from xgray.distributed.nodes import ClusterCapacity, Nodes
from xgray.errors import InputError
from xgray.storage.folder import TEMPORARY_MARK, Folder

PASSED_ON = ("XGRAY_", "HF_", "VLLM_", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
"""Environment variables with these beginnings are given to the workers of a cluster, as are keys in a way of their
own; the workers of a local one inherit all."""
LOOK_SECONDS = 30.0
LOOKS = 3
"""One a second: a network file system may answer from its cache that a new file is not there."""
TOKEN_HINT = (
    "a cluster with token authentication wants RAY_AUTH_MODE=token and its token, which `ray get-auth-token` prints on "
    "its head, in the file that RAY_AUTH_TOKEN_PATH names"
)


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Ray for the length of the block: the cluster at ``address`` or ``RAY_ADDRESS``, otherwise a local one.

    A Ray that is up already is used and left as it is.

    Raises:
        InputError: no cluster answers at the address, or it refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS")
    given = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON) or name in KEYS}
    keys = {name: value for name, value in given.items() if is_secret(name, value)}
    # A job's workers have its variables, and Ray takes none twice.
    shown = {name: value for name, value in given.items() if name not in keys | job_variables()}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its warnings are about Ray's inside
    try:
        with contextlib.nullcontext() if target else _interrupts_held():
            _init(target, shown)
        _began.update(_living())
        with handed_over(keys if target else {}):
            yield
    finally:
        _began.clear()
        ray.shutdown()


def _num_gpus() -> int | None:
    """For Ray on this machine: none where PyTorch was built for CPUs, whatever is in the machine; else Ray counts."""
    return 0 if version("torch").endswith("+cpu") else None


def _init(target: str | None, variables: dict[str, str]) -> None:
    try:
        ray.init(
            address=target or "local",
            num_gpus=None if target else _num_gpus(),
            include_dashboard=None if target else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": variables} if target and variables else None,
        )
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address: {str(error).splitlines()[0].split('. ')[0]}; {TOKEN_HINT}") from None
    except ConnectionError:
        raise InputError(f"--address: no Ray cluster lets this machine in at {target}; {TOKEN_HINT}") from None


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Interrupts come when the block is over: one in the middle of Ray's start would leave agents of it alive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)

    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is hold:  # Ray has one of its own for SIGTERM
                signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


_began: Nodes = Counter()
"""The nodes of the cluster that :func:`connect` joined, as they were then."""


def cluster_capacity() -> ClusterCapacity:
    """What the cluster has, had when this process joined it by :func:`connect`, and may get."""
    config = state.state.get_cluster_config()
    may: Nodes = Counter()
    for group in config.node_group_configs if config else ():
        shape = int(group.resources.get("CPU", 0)), int(group.resources.get("GPU", 0))
        may[shape] += group.max_count if group.max_count >= 0 else sys.maxsize
    return ClusterCapacity(_living(), Counter(_began), may)


def _living() -> Nodes:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Counter((int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in resources)


def total(resource: str) -> int:
    """How much of a resource (``CPU``, ``GPU``) the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def check_shared(run: Folder) -> None:
    """Refuse a run's folder on a disk of this machine that is not every node's. Ray must be up.

    Nodes that join later are not looked at, nor those that go or do not answer in LOOK_SECONDS.

    Raises:
        InputError: a node does not see what is written into the folder here.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if run.local is None or len(nodes) < 2:
        return
    marker = f"{TEMPORARY_MARK}shared-{uuid.uuid4().hex}"
    run.write_bytes(marker, b"")
    try:
        look = ray.remote(_sees)
        looks = {
            look.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(str(run.local / marker)): node
            for node in nodes
        }
        answered, _ = ray.wait(list(looks), num_returns=len(looks), timeout=LOOK_SECONDS)
        blind = [nodes[looks[one]] for one in answered if _answer(one) is False]
    finally:
        run.remove(marker)
    if blind:
        names = ", ".join(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in blind)
        raise InputError(
            f"{run} is not shared by all {len(nodes)} nodes: what is written there on this machine is not seen on "
            f"{names}; name a folder that all nodes mount under the same path, or a URI: --runs s3://BUCKET/runs"
        )


def _sees(path: str) -> bool:
    for _ in range(LOOKS):
        if os.path.exists(path):
            return True
        time.sleep(1.0)
    return False


def _answer(look: ray.ObjectRef) -> bool | None:
    try:
        found: bool = ray.get(look)
    except ray.exceptions.RayError:  # the node is gone, and with it the question
        return None
    return found


def thread_environment(num_threads: int) -> dict[str, dict[str, str]]:
    """The runtime environment of a worker that computes with this many threads.

    They sleep while they wait for each other: waiting busily, as is the default, takes the cores from the other
    workers, and was 10 times slower where these needed them.
    """
    return {"env_vars": {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}}
