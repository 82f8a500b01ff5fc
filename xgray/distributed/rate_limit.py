"""One quota for each key on a whole cluster, whoever sends with it: all actors of all runs."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import ray

from xgray.config import Score
from xgray.distributed.keys import NAMESPACE, take_keys
from xgray.errors import InputError
from xgray.score.build import build_scorer
from xgray.score.perspective import KEY_VARIABLE
from xgray.score.rate_limit import Quota, Turn
from xgray.score.scorer import Scorer

MAX_WAITING = 100_000
"""More calls than all actors have requests under way: one that waits for a turn must not keep out one that ends it."""
IDLE_SECONDS = 60.0
"""After as long without a request, the next run may name another rate."""
WINDOW_SECONDS = 1.1
"""The second that a service counts requests in, and room for what the network adds."""
LEASE_SECONDS = 120.0
"""A turn whose holder says nothing for as long, as one that died, counts as spent then."""


class Budget:
    """The quota of one key. It outlives the run that made it, as the service's own account does."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._quota = Quota(per_second)
        self._turns: dict[int, Turn] = {}
        self._tickets = itertools.count()
        self._last_taken = time.monotonic()
        # What was sent before a restart is not known; a window later it no longer counts.
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._open_from = self._last_taken + (WINDOW_SECONDS / min(per_second, 1.0) if restarted else 0.0)

    async def join(self, per_second: float) -> float:
        """The rate that is kept: the one asked for, unless requests at another one are under way."""
        idle = not self._turns and time.monotonic() - self._last_taken > IDLE_SECONDS
        if per_second != self._per_second and idle:
            self._per_second, self._quota = per_second, Quota(per_second)
        return self._per_second

    async def take(self) -> int:
        """Wait for a turn, and return the ticket to spend it by."""
        await asyncio.sleep(max(0.0, self._open_from - time.monotonic()))
        turn = await self._quota.acquire()
        ticket = next(self._tickets)
        self._turns[ticket] = turn
        self._last_taken = time.monotonic()
        asyncio.get_running_loop().call_later(LEASE_SECONDS, self._spend, ticket)
        return ticket

    async def spend(self, ticket: int) -> None:
        self._spend(ticket)

    def _spend(self, ticket: int) -> None:
        if turn := self._turns.pop(ticket, None):
            turn.spend()


class SharedQuota:
    """A :class:`~xgray.score.rate_limit.Pacer` whose places are those of the key's :class:`Budget`."""

    def __init__(self, budget: ray.actor.ActorHandle) -> None:
        self._budget = budget

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        ticket = await self._budget.take.remote()
        turn = Turn(lambda: self._budget.spend.remote(ticket))
        try:
            yield turn
        finally:
            turn.spend()


def shared_scorer(section: Score) -> Scorer:
    """The section's scorer, for one of the actors of a cluster: with its driver's keys and its key's one quota."""
    take_keys()
    return build_scorer(section, shared_quota(section) if section.scorer == "perspective" else None)


def shared_quota(section: Score) -> SharedQuota:
    """The quota of this process's key, on the cluster that it is connected to.

    Raises:
        InputError: requests with this key are under way at another rate.
    """
    asked = section.execution.requests_per_second
    key = hashlib.sha256(os.environ.get(KEY_VARIABLE, "").strip().encode()).hexdigest()
    make = ray.remote(
        name=f"quota-{key[:16]}",  # a digest: all who see the cluster see the names of its actors
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=MAX_WAITING,
    )(Budget)
    budget = make.remote(asked)
    kept = ray.get(budget.join.remote(asked))
    if kept != asked:
        raise InputError(
            f"score.execution.requests_per_second: {asked:g}, but another run sends with this key at {kept:g} a "
            "second; name the same rate, or wait for a minute after its end"
        )
    return SharedQuota(budget)
