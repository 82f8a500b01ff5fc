"""The HTTP side of ``xgray serve``: it takes requests of the Perspective protocol and gives a scorer batches of texts.

    POST /v1alpha1/comments:analyze     scores
    GET  /$discovery/rest               the document from which Google's client libraries build themselves
    GET  /card                          what the scorer was fitted on, and how well it agrees with people
    GET  /healthz                       200 while the process is up
    GET  /readyz                        200 if a text sent now is scored within ``READY_SECONDS``
    GET  /metrics                       counters for Prometheus

Waiting texts go to the scorer together as soon as it is free: one by one without load, in full batches under load. No
text waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from xgray.config import Serve
from xgray.score.scorer import Scored
from xgray.serve.protocol import DISCOVERY_PATH, PATH, STATUSES, ApiError, answer, check_key, discovery, parse

READY_SECONDS = 5.0
RETRY_AFTER = {429: "1", 503: "5"}
"""Seconds that a client is asked to wait: until others are answered (429), or a scorer is started again (503)."""
LINGER_SECONDS = 2.0
"""How long the rest of a refused body is read, so that the client can read why it was refused."""
SHUTDOWN_SECONDS = 10.0
"""How long open requests may take when the service ends."""
PROBE = "Good morning."
"""The text that is scored to find out whether the scorer is ready."""

Item = tuple[str, str]
"""A text and its language."""
ScoreBatch = Callable[[Sequence[Item]], Awaitable[Sequence[Scored]]]
"""Returns one result for each item, in order; raises :class:`Unavailable` if no scorer can."""


class Unavailable(Exception):
    """No scorer could score the texts now; the same request may succeed later."""


@dataclass(frozen=True)
class ScorerInfo:
    """What the scorer behind a service can do."""

    scorer: str
    """The scorer's name, version and device."""
    attributes: tuple[str, ...]
    languages: tuple[str, ...]
    provenance: dict[str, Any]
    """What has to stand beside every number of the scorer; JSON values."""


class Metrics:
    """The counters for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("xgray_requests", "Requests by answer", ["status"], registry=self.registry)
        self.refusals = Counter("xgray_refusals", "Answers other than 200 by kind", ["kind"], registry=self.registry)
        self.texts = Counter("xgray_texts", "Texts scored by language", ["language"], registry=self.registry)
        self.waiting = Gauge("xgray_texts_under_way", "Texts that are not answered yet", registry=self.registry)
        self.batch_size = Histogram(
            "xgray_batch_texts", "Texts in a batch", buckets=[2**power for power in range(11)], registry=self.registry
        )
        self.seconds = Histogram(
            "xgray_score_seconds", "Seconds from a whole request to its scores", registry=self.registry
        )


class Batcher:
    """Scores the texts of many requests together. It belongs to one event loop."""

    def __init__(self, score_batch: ScoreBatch, batch_size: int, num_concurrent: int, metrics: Metrics) -> None:
        self._score_batch = score_batch
        self._batch_size = batch_size
        self._num_free = num_concurrent
        self._metrics = metrics
        self._waiting: deque[tuple[Item, asyncio.Future[Scored]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, item: Item) -> Scored:
        """Score one text in the next batch.

        Raises:
            Unavailable: no scorer could score the batch.
        """
        future: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start_batches()
        return await future

    def _start_batches(self) -> None:
        """Give waiting texts to the scorer while it can take more batches."""
        while self._num_free and self._waiting:
            batch: list[tuple[Item, asyncio.Future[Scored]]] = []
            while self._waiting and len(batch) < self._batch_size:
                item, future = self._waiting.popleft()
                if not future.done():  # its request has timed out
                    batch.append((item, future))
            if batch:
                self._num_free -= 1
                task = asyncio.create_task(self._run(batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Scored]]]) -> None:
        self._metrics.batch_size.observe(len(batch))
        try:
            results = await self._score_batch([item for item, _ in batch])
            for (_, future), scored in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(scored)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._num_free += 1
            self._start_batches()


class Service:
    """Answers requests. Nothing that a client sends is logged: it may be private, or hold a key."""

    def __init__(
        self, section: Serve, scorer: ScorerInfo, score_batch: ScoreBatch, num_concurrent: int, key: str | None
    ) -> None:
        """Prepare a service; :meth:`listening` starts it.

        Args:
            num_concurrent: concurrent calls of ``score_batch``.
            key: the key that clients have to send; None admits everybody.
        """
        self._section = section
        self._scorer = scorer
        self._key = key
        self._metrics = Metrics()
        self._batcher = Batcher(score_batch, section.batch_size, num_concurrent, self._metrics)
        self._num_open = 0
        """Texts that are not answered yet."""
        self._silent: set[asyncio.BaseProtocol] = set()
        """Connections that have not sent a request yet."""

    @asynccontextmanager
    async def listening(self, bound: socket.socket) -> AsyncIterator[None]:
        """Serve on a bound socket for the duration of the block; open requests are answered before it ends."""
        app = web.Application(client_max_size=self._section.max_body_bytes, middlewares=[self._answer_in_json])
        app.router.add_post(PATH, self._analyze)
        app.router.add_get(DISCOVERY_PATH, self._discover)
        app.router.add_get("/card", self._report_card)
        app.router.add_get("/healthz", self._report_health)
        app.router.add_get("/readyz", self._report_readiness)
        app.router.add_get("/metrics", self._report_metrics)
        runner = web.AppRunner(
            app,
            access_log=None,
            lingering_time=LINGER_SECONDS,
            keepalive_timeout=75.0,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        server = runner.server
        assert server is not None
        loop = asyncio.get_running_loop()

        def accept() -> asyncio.BaseProtocol:
            protocol = server()
            self._silent.add(protocol)
            loop.call_later(self._section.read_timeout_seconds, self._close_if_silent, protocol)
            return protocol

        listener = await loop.create_server(accept, sock=bound, backlog=socket.SOMAXCONN)
        try:
            yield
        finally:
            listener.close()
            await runner.cleanup()

    def _close_if_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.remove(protocol)
            protocol.force_close()

    @web.middleware
    async def _answer_in_json(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer errors with Google's JSON bodies, and count requests and refusals."""
        self._silent.discard(request.protocol)
        headers = {}
        try:
            response = await handler(request)
            self._metrics.requests.labels(response.status).inc()
            return response
        except ApiError as error:
            refusal = error
        except web.HTTPRequestEntityTooLarge:
            limit = self._section.max_body_bytes
            refusal = ApiError(413, f"Request payload size exceeds the limit: {limit} bytes.", "BODY_TOO_LARGE")
        except web.HTTPMethodNotAllowed as error:
            headers["Allow"] = error.headers["Allow"]
            refusal = ApiError(
                405, f"{PATH} takes POST requests, all other paths take GET requests.", "METHOD_NOT_ALLOWED"
            )
        except web.HTTPException as error:
            refusal = ApiError(error.status if error.status in STATUSES else 400, error.reason)
        if refusal.code in RETRY_AFTER:
            headers["Retry-After"] = RETRY_AFTER[refusal.code]
        self._metrics.requests.labels(refusal.code).inc()
        self._metrics.refusals.labels(refusal.kind).inc()
        response = web.Response(
            body=refusal.body(), status=refusal.code, headers=headers, content_type="application/json"
        )
        if refusal.code in (408, 413):
            response.force_close()
        return response

    async def _analyze(self, request: web.Request) -> web.Response:
        if self._key is not None:
            check_key(self._key, [*request.query.getall("key", []), request.headers.get("x-goog-api-key", "")])
        analysis = parse(await self._body(request), self._scorer.attributes, self._scorer.languages)
        began = time.perf_counter()
        scored = await self._score((analysis.text, analysis.language), self._section.timeout_seconds)
        body = answer(analysis, scored)
        self._metrics.texts.labels(analysis.language).inc()
        self._metrics.seconds.observe(time.perf_counter() - began)
        return web.Response(body=body, content_type="application/json")

    async def _body(self, request: web.Request) -> bytes:
        """Read the request's body, within the limits of size and time."""
        if (request.content_length or 0) > self._section.max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(self._section.max_body_bytes)
        try:
            async with asyncio.timeout(self._section.read_timeout_seconds):
                return await request.read()
        except TimeoutError:
            seconds = self._section.read_timeout_seconds
            raise ApiError(408, f"The request was not sent within {seconds:g} s.", "SLOW_CLIENT") from None
        except web.RequestPayloadError:
            raise ApiError(400, "The request's body is not encoded as its header says.", "INVALID_BODY") from None

    async def _score(self, item: Item, timeout_seconds: float) -> Scored:
        """Score a text, unless too many requests are open.

        Raises:
            ApiError: there are too many, or no score in time.
        """
        if self._num_open >= self._section.max_requests:
            limit = self._section.max_requests
            raise ApiError(429, f"{limit} requests are open, which is the limit; try again later.", "OVERLOADED")
        self._num_open += 1
        self._metrics.waiting.set(self._num_open)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._batcher.score(item)
        except TimeoutError:
            raise ApiError(
                503, f"The scorer did not answer within {timeout_seconds:g} s; try again later.", "TIMEOUT"
            ) from None
        except Unavailable as error:
            raise ApiError(503, str(error), "SCORER_UNAVAILABLE") from None
        finally:
            self._num_open -= 1
            self._metrics.waiting.set(self._num_open)

    async def _discover(self, request: web.Request) -> web.Response:
        document = discovery(f"{request.url.origin()}/")
        return web.Response(body=json.dumps(document).encode(), content_type="application/json")

    async def _report_card(self, request: web.Request) -> web.Response:
        card = {"attributes": self._scorer.attributes, "languages": self._scorer.languages, **self._scorer.provenance}
        return web.Response(body=json.dumps(card, ensure_ascii=False).encode(), content_type="application/json")

    async def _report_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _report_readiness(self, request: web.Request) -> web.Response:
        await self._score((PROBE, self._scorer.languages[0]), READY_SECONDS)
        return web.Response(text="ok\n")

    async def _report_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
