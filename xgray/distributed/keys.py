"""Keys on a cluster: from the driver's environment into that of its workers, and nowhere else.

What stands in a runtime environment, a job or an actor's name is to be read in Ray's dashboard, its state API and its
logs. So an actor beside the driver holds the keys in its memory, and gives them to the run's workers, who ask for them.
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
    "PERSPECTIVE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
)  # fmt: skip
"""What a run may need to know and nobody else may."""
PASSWORD = re.compile(r"://[^/@\s]*@")


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable holds a key, by its name or as part of an address."""
    return name in KEYS or SECRET.search(name) is not None or PASSWORD.search(value) is not None


class Keeper:
    """Has the keys of one run, for as long as its driver lives."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def keep(self, keys: dict[str, str]) -> None:
        """By a call and not when it is made: what an actor is made with is recorded, a call goes to its process."""
        self._keys = keys

    def give(self) -> dict[str, str]:
        return self._keys


@contextlib.contextmanager
def handed_over(keys: Mapping[str, str]) -> Iterator[None]:
    """Keep the keys for the workers of this driver while the block runs; Ray must be up."""
    if not keys:
        yield
        return
    here = ray.get_runtime_context().get_node_id()
    keeper = (
        ray.remote(Keeper)
        .options(
            name=_name(),
            namespace=NAMESPACE,
            num_cpus=0,
            # Where the driver is: what ends one ends both.
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote()
    )
    ray.get(keeper.keep.remote(dict(keys)))
    yield
    ray.kill(keeper)  # and up to here it is referred to, without which Ray would end it


def take_keys() -> None:
    """Set the driver's keys in the environment of this worker; without a driver that handed any over, nothing."""
    try:
        keeper = ray.get_actor(_name(), NAMESPACE)
    except ValueError:  # a local Ray: its workers have the driver's environment
        return
    os.environ.update(ray.get(keeper.give.remote()))


def _name() -> str:
    return f"keys-{ray.get_runtime_context().get_job_id()}"
