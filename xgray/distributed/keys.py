"""Keys on a cluster: they go from the driver's environment into that of its workers, and nowhere else.

Runtime environments, jobs and names of actors can be read in Ray's dashboard, its state API and its logs. So an actor
on the driver's node holds the keys in its memory, and the run's workers ask it for them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xgray.runs.secrets import SECRET

NAMESPACE = "xgray"
KEYS = (
    "PERSPECTIVE_API_KEY",
    "OPENAI_API_KEY",
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""The environment variables that hold keys which a run may need."""
PASSWORD = re.compile(r"://[^/@\s]*@")


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable holds a key: by its name, or as part of an address."""
    return name in KEYS or SECRET.search(name) is not None or PASSWORD.search(value) is not None


class KeyHolder:
    """The actor that holds the keys of one run, for as long as its driver lives."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def set(self, keys: dict[str, str]) -> None:
        """Take the keys. They are no constructor argument, because Ray records those; a call goes to the process."""
        self._keys = keys

    def get(self) -> dict[str, str]:
        return self._keys


@contextlib.contextmanager
def keys_for_workers(keys: Mapping[str, str]) -> Iterator[None]:
    """Hold the keys ready for the workers of this driver while the block runs; Ray must be up."""
    if not keys:
        yield
        return
    node = ray.get_runtime_context().get_node_id()
    holder = (
        ray.remote(KeyHolder)
        .options(
            name=_actor_name(),
            namespace=NAMESPACE,
            num_cpus=0,
            # On the driver's node, so that what ends the driver also ends this actor.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
    )
    ray.get(holder.set.remote(dict(keys)))
    yield
    ray.kill(holder)  # also a reference that lasts until here, without which Ray would end the actor


def take_keys() -> None:
    """Set the driver's keys in the environment of this worker, if the driver holds any."""
    try:
        holder = ray.get_actor(_actor_name(), NAMESPACE)
    except ValueError:  # a local Ray, whose workers inherit the driver's environment
        return
    os.environ.update(ray.get(holder.get.remote()))


def _actor_name() -> str:
    return f"keys-{ray.get_runtime_context().get_job_id()}"
