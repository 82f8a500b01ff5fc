"""A service in this process, with whatever scores."""

import asyncio
import socket
from contextlib import asynccontextmanager

import aiohttp

from xgray.config import Serve
from xgray.score.scorer import Scored
from xgray.serve.http import ScorerInfo, ServedScorer, Service

KEY = "serve-key-17"
SCORER_INFO = ScorerInfo("embedding", ("toxicity",), ("en", "de"), {"version": "1", "agreement": {}})


@asynccontextmanager
async def running(score_batch, key=None, num_concurrent=2, info=SCORER_INFO, others=None, **settings):
    """Run a service for the duration of the block and yield a session with it.

    The scorer is called embedding; ``others`` are served beside it.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        scorers = {"embedding": ServedScorer(info, score_batch), **(others or {})}
        service = Service(Serve.model_validate(settings), scorers, num_concurrent, key)
        async with service.listening(bound):
            address = f"http://127.0.0.1:{bound.getsockname()[1]}"
            async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
                yield session


def fixed(scores, languages=("en", "de")):
    """Return a scorer that gives every text the same scores."""

    async def score_batch(items):
        return [Scored(dict(scores)) for _ in items]

    return ServedScorer(ScorerInfo("fixed", tuple(scores), languages, {"version": "1"}), score_batch)


async def raw(session, content):
    """Send bytes to the service of a session, and return what it answers before it closes the connection."""
    reader, writer = await asyncio.open_connection(session._base_url.host, session._base_url.port)
    writer.write(content)
    received = b""
    try:
        async with asyncio.timeout(5):
            while not received.endswith(b"}"):
                if not (part := await reader.read(10_000)):
                    break
                received += part
    finally:
        writer.close()
    return received
