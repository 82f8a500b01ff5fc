"""A limit of requests per second, kept as the service counts them.

A leaky bucket spaces the requests, and lets a tenth of a second's requests catch up after a delay. The bucket alone is
not enough: requests that leave it evenly may arrive bunched, for example where one waits for its connection to open
while later ones use open connections. So each request also holds one of ``per_second`` permits until one second after
it was written to its connection, and no second sees more requests leave than there are permits. Both are slower than
the limit by ``MARGIN``, which makes room for the delays that the network adds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace, TracebackType

import aiohttp
from aiolimiter import AsyncLimiter

MARGIN = 1.015
CATCH_UP_SECONDS = 0.1


class Permit:
    """The right to send one request.

    It is released when the request is written to its connection (:func:`release_when_written`), or at the end of a
    ``with`` block where the request was given up before.
    """

    def __init__(self, on_release: Callable[[], object]) -> None:
        self._on_release: Callable[[], object] | None = on_release

    def release(self) -> None:
        """Give the permit back; only the first call has an effect."""
        if self._on_release:
            self._on_release()
            self._on_release = None

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


Acquire = Callable[[], Awaitable[Permit]]
"""Waits until one request may leave: :meth:`RateLimit.acquire`, or a function that asks a limit shared by a cluster."""


class RateLimit:
    """At most ``per_second`` requests in any second, of all that one event loop sends through this limit.

    A limit below one, or with a fraction, is kept over the seconds that a whole number of requests takes.
    """

    def __init__(self, per_second: float) -> None:
        num_permits = max(1, int(per_second))
        burst = max(1.0, CATCH_UP_SECONDS * per_second)
        self._permits = asyncio.Semaphore(num_permits)
        self._bucket = AsyncLimiter(burst, MARGIN * burst / per_second)
        self._window_seconds = MARGIN * num_permits / per_second

    async def acquire(self) -> Permit:
        """Wait for a permit. It can be given out again one window after its release."""
        await self._bucket.acquire()
        await self._permits.acquire()
        return Permit(self._free_after_window)

    def _free_after_window(self) -> None:
        asyncio.get_running_loop().call_later(self._window_seconds, self._permits.release)


def release_when_written() -> aiohttp.TraceConfig:
    """Return a trace for a session that releases a request's permit when the request is written to the connection.

    The request names its permit as ``trace_request_ctx``.
    """

    async def on_chunk_sent(
        session: aiohttp.ClientSession, context: SimpleNamespace, chunk: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        context.trace_request_ctx.release()

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(on_chunk_sent)
    return trace
