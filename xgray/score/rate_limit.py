"""A quota of requests a second, kept as the server sees it.

A leaky bucket spaces the requests, and lets a tenth of a second's catch up after a delay. That alone is no promise:
what leaves it evenly need not arrive so, as where one request waits for its connection to open while later ones take
connections that are open. So each request also holds one of ``per_second`` slots until a second after it was written
to its connection, and no second sees more requests leave than there are slots. Both are slower than the quota by
``MARGIN``, the room for what the network adds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace
from typing import Protocol

import aiohttp
from aiolimiter import AsyncLimiter

MARGIN = 1.015
CATCH_UP_SECONDS = 0.1


class Pacer(Protocol):
    """Who says when a request may leave: a :class:`Quota` of this event loop, or one that a cluster shares."""

    def turn(self) -> AbstractAsyncContextManager[Turn]:
        """Wait until one request may leave; the session that sends it knows it by its ``trace_request_ctx``."""
        ...


class Quota:
    """At most ``per_second`` requests in any second, of all that one event loop sends through it.

    A quota below one, or with a fraction, is kept over the seconds that a whole number of requests takes.
    """

    def __init__(self, per_second: float) -> None:
        num_slots = max(1, int(per_second))
        self._slots = asyncio.Semaphore(num_slots)
        burst = max(1.0, CATCH_UP_SECONDS * per_second)
        self._pace = AsyncLimiter(burst, MARGIN * burst / per_second)
        self._window = MARGIN * num_slots / per_second

    async def acquire(self) -> Turn:
        """Wait for a place, which stays taken until a window after its turn is spent."""
        await self._pace.acquire()
        await self._slots.acquire()
        return Turn(self._free_later)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        turn = await self.acquire()
        try:
            yield turn
        finally:
            turn.spend()

    def _free_later(self) -> None:
        asyncio.get_running_loop().call_later(self._window, self._slots.release)


class Turn:
    """One request's place in the quota, spent when the request is written or given up."""

    def __init__(self, free_later: Callable[[], None]) -> None:
        self._free_later: Callable[[], None] | None = free_later

    def spend(self) -> None:
        if self._free_later:
            self._free_later()
            self._free_later = None


def spend_when_written() -> aiohttp.TraceConfig:
    """The trace by which a session spends the :class:`Turn` of each request as it writes it to the connection."""

    async def on_chunk_sent(
        session: aiohttp.ClientSession, context: SimpleNamespace, chunk: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        context.trace_request_ctx.spend()

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(on_chunk_sent)
    return trace
