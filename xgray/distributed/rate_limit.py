"""One rate limit for each key on a whole cluster, shared by all actors of all runs that send with the key."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid

import ray

from xgray.config import Score
from xgray.distributed.keys import NAMESPACE, take_keys
from xgray.errors import InputError
from xgray.score.build import build_scorer
from xgray.score.perspective import KEY_VARIABLE
from xgray.score.rate_limit import Acquire, Permit, RateLimit
from xgray.score.scorer import Scorer

MAX_WAITING = 100_000
"""More calls than all actors have requests under way: calls that wait for a permit must not block one that releases
a permit."""
IDLE_SECONDS = 60.0
"""After this long without a request, the next run may set another rate."""
WINDOW_SECONDS = 1.1
"""The second that a service counts requests in, and room for the delays that the network adds."""
LEASE_SECONDS = 120.0
"""A permit is released after this long even if its holder does not release it, because the holder may have died."""


class SharedRateLimit:
    """The actor that holds the rate limit of one key. It outlives the run that started it, as the account does."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._limit = RateLimit(per_second)
        self._permits: dict[str, Permit] = {}
        """The permits that are held, by the ticket that their holder has."""
        self._last_acquired = time.monotonic()
        # After a restart it is unknown what was sent before; one window later it no longer counts.
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._open_from = self._last_acquired + (WINDOW_SECONDS / min(per_second, 1.0) if restarted else 0.0)

    async def join(self, per_second: float) -> float:
        """Return the rate that is kept: the given one, unless requests at another rate are under way."""
        idle = not self._permits and time.monotonic() - self._last_acquired > IDLE_SECONDS
        if per_second != self._per_second and idle:
            self._per_second, self._limit = per_second, RateLimit(per_second)
        return self._per_second

    async def acquire(self) -> str:
        """Wait for a permit, and return the ticket to release it by."""
        await asyncio.sleep(max(0.0, self._open_from - time.monotonic()))
        permit = await self._limit.acquire()
        # Unique also across restarts of this actor: a ticket of before must not release another holder's permit.
        ticket = uuid.uuid4().hex
        self._permits[ticket] = permit
        self._last_acquired = time.monotonic()
        asyncio.get_running_loop().call_later(LEASE_SECONDS, self._release, ticket)
        return ticket

    async def release(self, ticket: str) -> None:
        self._release(ticket)

    def _release(self, ticket: str) -> None:
        if permit := self._permits.pop(ticket, None):
            permit.release()


def shared_scorer(section: Score) -> Scorer:
    """Build the section's scorer in a worker of a cluster: with the driver's keys and the key's shared rate limit."""
    take_keys()
    return build_scorer(section, shared_rate_limit(section) if section.scorer == "perspective" else None)


def shared_rate_limit(section: Score) -> Acquire:
    """Return the function that waits for a permit of this process's key. Ray must be up.

    Raises:
        InputError: requests with this key are under way at another rate.
    """
    per_second = section.execution.requests_per_second
    key = hashlib.sha256(os.environ.get(KEY_VARIABLE, "").strip().encode()).hexdigest()
    limit = ray.remote(
        name=f"quota-{key[:16]}",  # a digest, because the names of actors can be seen by everybody on the cluster
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=MAX_WAITING,
    )(SharedRateLimit).remote(per_second)
    kept = ray.get(limit.join.remote(per_second))
    if kept != per_second:
        raise InputError(
            f"score.execution.requests_per_second: {per_second:g}, but another run sends with this key at {kept:g} a "
            "second. Set the same rate, or wait for a minute after the other run's end."
        )

    async def acquire() -> Permit:
        ticket = await limit.acquire.remote()
        return Permit(lambda: limit.release.remote(ticket))

    return acquire
