"""Join a Ray cluster, or start a local one for this process."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from types import FrameType

import ray
from ray._common.utils import get_system_memory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.distributed.autoscaler import configured_limit, reported_limit
from xgray.distributed.job_environment import job_variables
from xgray.distributed.keys import KEYS, is_secret, keys_for_workers
from xgray.distributed.local_ray import (
    end_failed_start,
    guarded,
    keep_token_private,
    on_loopback,
    private_folder,
    settings,
    was_abandoned,
)
from xgray.distributed.nodes import ClusterCapacity, Nodes
from xgray.distributed.notices import without_notice
from xgray.errors import InputError, StageError
from xgray.runs.library_bars import hide_library_bars
from xgray.storage.folder import TEMPORARY_MARK, Folder

log = logging.getLogger(__name__)

PASSED_ON = (
    *("XGRAY_", "HF_", "TQDM_", "VLLM_", "WANDB_", "TRACKIO_"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AZURE_"),
    *("CUDA_", "CUBLAS_", "NCCL_", "GLOO_", "PYTORCH_", "TORCH_"),
)
"""Environment variables with these prefixes are passed on to the workers of a cluster. Keys are passed on by an actor
(:mod:`xgray.distributed.keys`); the workers of a local Ray inherit the whole environment."""
OF_THIS_MACHINE = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "VLLM_LOGGING_CONFIG_PATH", "TORCH_HOME")
"""Those which are not: Ray chooses each worker's GPUs, and paths of this machine may be wrong on others."""
PROBE_SECONDS = 30.0
NUM_PROBES = 3
"""One per second: a network file system may answer from its cache that a new file does not exist."""
TOKEN_HINT = (
    "A cluster with token authentication needs RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH must name a file with the "
    "token, which `ray get-auth-token` prints on the cluster's head."
)
ADDRESS_HINT = (
    "Name the cluster's head, --address HOST:6379, or auto for the cluster on this machine. Without an address a local "
    "Ray is started"
)
NUM_STARTS = 3
"""How often a local Ray is started before it is given up: its raylet ends if an agent is not up within 15 seconds."""
ANSWER_SECONDS = 10.0
"""How long to wait for something that listens at a cluster's address."""


@contextlib.contextmanager
def connect(address: str | None = None) -> Iterator[None]:
    """Connect to Ray while the block runs: to ``address`` or ``RAY_ADDRESS``, otherwise start a local Ray.

    If this process is connected already, the connection is used and left as it is.

    Raises:
        InputError: no cluster answers at the address, or it refuses the token.
        StageError: a local Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS")
    hide_library_bars()
    passed_on = passed_on_variables(os.environ)
    keys = {name: value for name, value in passed_on.items() if is_secret(name, value)}
    # The workers of a job have the job's variables already, and Ray refuses a variable that is set twice.
    variables = {name: value for name, value in passed_on.items() if name not in keys | job_variables()}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What an actor has started ends with it, as vLLM's processes that hold a GPU's memory. Ray 2.60 does so by default.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its warnings are about Ray's internals
    of_local_ray = contextlib.ExitStack()
    try:
        if not target:
            of_local_ray.enter_context(settings())
        with without_notice():
            _init(target, variables)
        _nodes_at_start.update(_alive_nodes())
        if target:
            _configured_limit.update(configured_limit())
        with keys_for_workers(keys if target else {}), contextlib.nullcontext() if target else guarded():
            yield
    finally:
        _nodes_at_start.clear()
        _configured_limit.clear()
        if not was_abandoned():
            ray.shutdown()
        of_local_ray.close()


def passed_on_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the driver's environment that the workers of a cluster get, keys among them."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PASSED_ON) and name not in OF_THIS_MACHINE) or name in KEYS
    }


def _local_gpus() -> int | None:
    """Return the GPUs that a local Ray may use: 0 if PyTorch was built for CPUs, None to have Ray count them."""
    return 0 if version("torch").endswith("+cpu") else None


def _init(target: str | None, variables: dict[str, str]) -> None:
    if target is None:
        _start_local()
        return
    _check_answers(target)
    try:
        ray.init(
            address=target,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": variables} if variables else None,
        )
    except ray.exceptions.AuthenticationError as error:
        raise InputError(f"--address: {str(error).splitlines()[0].split('. ')[0]}. {TOKEN_HINT}") from None
    except ConnectionError:
        raise InputError(f"--address: no Ray cluster lets this machine in at {target}. {TOKEN_HINT}") from None
    except (ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--address: cannot join the Ray cluster at {target}: {reason}. {ADDRESS_HINT}") from None


def _start_local() -> None:
    keep_token_private()
    for remaining in reversed(range(NUM_STARTS)):
        try:
            with _interrupts_deferred(), on_loopback():
                ray.init(
                    address="local",
                    num_gpus=_local_gpus(),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=private_folder(),
                )
            return
        except Exception as error:
            if "during startup" not in str(error):  # Ray raises no class of its own
                raise
            end_failed_start()
            if not remaining:
                raise StageError(
                    f"Ray did not start in time, {NUM_STARTS} times over, which happens where other programs keep the "
                    "machine busy. Run the same command again when it has less to do"
                ) from error
            log.warning("Ray did not start in time, as other programs keep the machine busy; it is started again")


def _check_answers(target: str) -> None:
    """Check that something listens at an address; Ray itself would try for ten minutes.

    Raises:
        InputError: the address has another form, or nothing answers.
    """
    if target in ("auto", "local"):
        return
    match = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", target)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise InputError(f"--address: {target!r} is not the address of a Ray cluster. {ADDRESS_HINT}")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise InputError(f"--address: nothing answers at {target} ({reason}). {ADDRESS_HINT}") from None
        time.sleep(1.0)


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Deliver interrupts after the block: in the middle of Ray's start they would leave agents of Ray alive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deferred: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        deferred.append(number)

    before = {number: signal.signal(number, defer) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is defer:  # Ray installs a handler for SIGTERM
                signal.signal(number, handler)
    if deferred:
        signal.raise_signal(deferred[0])


_nodes_at_start: Nodes = Counter()
"""The nodes of the cluster that :func:`connect` joined, as they were then."""
_configured_limit: Nodes = Counter()
"""The most nodes that its autoscaler may start, by its settings at that time."""


def cluster_capacity() -> ClusterCapacity:
    """Return what the cluster has, what it had when this process joined it by :func:`connect`, and what it may get."""
    limit = reported_limit() or Counter(_configured_limit)
    return ClusterCapacity(_alive_nodes(), Counter(_nodes_at_start), limit)


def _alive_nodes() -> Nodes:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Counter((int(resource.get("CPU", 0)), int(resource.get("GPU", 0))) for resource in resources)


def total(resource: str) -> int:
    """Return how much of a resource (``CPU``, ``GPU``) the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


@functools.cache
def memory_bytes(gpu: bool) -> int | None:
    """Return the memory of one of the cluster's GPUs, or of a node with cores; None where none answers in time."""
    if not gpu and sum(1 for node in ray.nodes() if node["Alive"]) == 1:
        return get_system_memory()
    resources = {"num_cpus": 0, "num_gpus": 0.001} if gpu else {"num_cpus": 1}
    probe = ray.remote(max_calls=1, **resources)(_gpu_bytes if gpu else get_system_memory)
    try:
        found: int = ray.get(probe.remote(), timeout=PROBE_SECONDS)
    except ray.exceptions.RayError:
        return None
    return found


def _gpu_bytes() -> int:
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def check_shared(run: Folder) -> None:
    """Refuse a run's folder that is on a local disk of this machine and not on every node's. Ray must be up.

    Nodes that join later are not checked, nor nodes that leave or do not answer within ``PROBE_SECONDS``.

    Raises:
        InputError: a node does not see a file that is written into the folder here.
    """
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    if run.local is None or len(nodes) < 2:
        return
    marker = f"{TEMPORARY_MARK}shared-{uuid.uuid4().hex}"
    run.write_bytes(marker, b"")
    try:
        probe = ray.remote(_file_exists)
        probes = {
            probe.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(str(run.local / marker)): node
            for node in nodes
        }
        answered, _ = ray.wait(list(probes), num_returns=len(probes), timeout=PROBE_SECONDS)
        blind = [nodes[probes[ref]] for ref in answered if _answer(ref) is False]
    finally:
        run.remove(marker)
    if blind:
        names = ", ".join(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in blind)
        raise InputError(
            f"{run} is not shared by all {len(nodes)} nodes: a file written there on this machine is missing on "
            f"{names}. Name a folder that all nodes mount under the same path, or a URI: --runs s3://BUCKET/runs"
        )


def _file_exists(path: str) -> bool:
    for _ in range(NUM_PROBES):
        if os.path.exists(path):
            return True
        time.sleep(1.0)
    return False


def _answer(probe: ray.ObjectRef) -> bool | None:
    """Return a probe's answer, None if its node is gone."""
    try:
        exists: bool = ray.get(probe)
    except ray.exceptions.RayError:
        return None
    return exists


def thread_environment(num_threads: int) -> dict[str, dict[str, str]]:
    """Return the runtime environment of a worker that computes with ``num_threads`` threads.

    The threads sleep while they wait for each other. By default they would wait busily and take the cores from other
    workers, which was 10 times slower where those needed them.
    """
    return {"env_vars": {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}}
