"""The HTTP side of ``xgray serve``: it takes requests of the Perspective protocol and gives a scorer batches of texts.

    POST /v1alpha1/comments:analyze     scores
    GET  /$discovery/rest               the document from which Google's client libraries build themselves
    GET  /card                          what the scorer was fitted on, and how well it agrees with people
    GET  /healthz                       200 while the process is up
    GET  /readyz                        200 if a text sent now is scored within ``READY_SECONDS`` by each scorer
    GET  /metrics                       counters for Prometheus

The first three are of the first scorer; those of each scorer are below its name: ``/NAME/v1alpha1/comments:analyze``.
With a key, all need it but ``/healthz``, which says nothing, and the document, which says what Google published.

Waiting texts go to the scorer together as soon as it is free: one by one without load, in full batches under load. No
text waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from xgray.config import Serve
from xgray.evaluate.consistency import identify
from xgray.score.scorer import Scored
from xgray.serve.connection import Connection, wrongly_encoded
from xgray.serve.protocol import (
    DISCOVERY_PATH,
    MAX_NAME,
    PATH,
    STATUSES,
    ApiError,
    answer,
    check_key,
    discovery,
    parse,
    resolve,
)

READY_SECONDS = 5.0
RETRY_AFTER = {429: "1", 503: "5"}
"""Seconds that a client is asked to wait: until others are answered (429), or a scorer is started again (503)."""
SHUTDOWN_SECONDS = 10.0
"""How long open requests may take when the service ends."""
PROBE = "Good morning."
"""The text that is scored to find out whether the scorer is ready."""
IDENTIFIED_CHARACTERS = 500
"""The language is identified from so many characters at the beginning of a text, in a millisecond."""
CARD_PATH = "/card"
OF_SCORER = (PATH, DISCOVERY_PATH, CARD_PATH)
"""What each scorer has, below its name too; scripts of web pages may use it."""
WITHOUT_KEY = ("/healthz", DISCOVERY_PATH)
"""What is answered without the service's key."""
PREFLIGHT_SECONDS = "3600"
"""How long a browser remembers what a web page may send."""
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,1000}")

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


@dataclass(frozen=True)
class ServedScorer:
    """A scorer that a service offers."""

    info: ScorerInfo
    score_batch: ScoreBatch


class Metrics:
    """The counters for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("xgray_requests", "Requests by answer", ["status"], registry=self.registry)
        self.refusals = Counter("xgray_refusals", "Answers other than 200 by kind", ["kind"], registry=self.registry)
        self.texts = Counter(
            "xgray_texts", "Texts scored by language and scorer", ["language", "scorer"], registry=self.registry
        )
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


@dataclass(frozen=True)
class _Offer:
    """A scorer with its name and the batches in which it scores."""

    name: str
    info: ScorerInfo
    batcher: Batcher

    def card(self) -> dict[str, Any]:
        """Return what the scorer measures, and where it comes from."""
        return {"attributes": self.info.attributes, "languages": self.info.languages, **self.info.provenance}


class Service:
    """Answers requests. Nothing that a client sends is logged: it may be private, or hold a key."""

    def __init__(
        self, section: Serve, scorers: Mapping[str, ServedScorer], num_concurrent: int, key: str | None
    ) -> None:
        """Prepare a service; :meth:`listening` starts it.

        Args:
            scorers: by name; the first one answers requests that name none.
            num_concurrent: concurrent calls of each ``score_batch``.
            key: the key that clients have to send; None admits everybody.
        """
        self._section = section
        self._key = key
        self._metrics = Metrics()
        self._offers = {
            name: _Offer(name, each.info, Batcher(each.score_batch, section.batch_size, num_concurrent, self._metrics))
            for name, each in scorers.items()
        }
        self._default = next(iter(self._offers.values()))
        self._identifying = ThreadPoolExecutor(max_workers=1, thread_name_prefix="identify")
        """The identifier takes seconds to load, once, and must not stop everything meanwhile."""
        self._num_open = 0
        """Texts that are not answered yet."""
        self._silent: set[asyncio.BaseProtocol] = set()
        """Connections that have not sent a request yet."""

    @asynccontextmanager
    async def listening(self, bound: socket.socket) -> AsyncIterator[None]:
        """Serve on a bound socket for the duration of the block; open requests are answered before it ends."""
        app = web.Application(client_max_size=self._section.max_body_bytes, middlewares=[self._answer_in_json])
        for prefix in ("", "/{scorer}"):
            app.router.add_post(prefix + PATH, self._analyze)
            app.router.add_get(prefix + DISCOVERY_PATH, self._discover)
            app.router.add_get(prefix + CARD_PATH, self._report_card)
        app.router.add_get("/healthz", self._report_health)
        app.router.add_get("/readyz", self._report_readiness)
        app.router.add_get("/metrics", self._report_metrics)
        runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        server = runner.server
        assert server is not None
        loop = asyncio.get_running_loop()

        def accept() -> asyncio.BaseProtocol:
            protocol = Connection(server, self._respond, loop=loop)
            self._silent.add(protocol)
            loop.call_later(self._section.read_timeout_seconds, self._close_if_silent, protocol)
            return protocol

        listener = await loop.create_server(accept, sock=bound, backlog=socket.SOMAXCONN)
        try:
            yield
        finally:
            listener.close()
            await runner.cleanup()
            self._identifying.shutdown(wait=False)

    def _close_if_silent(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.remove(protocol)
            protocol.force_close()

    @web.middleware
    async def _answer_in_json(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer errors with Google's JSON bodies, admit web pages, and count requests and refusals."""
        self._silent.discard(request.protocol)
        response: web.StreamResponse
        headers = {}
        try:
            if _is_preflight(request):
                response = web.Response(headers=_preflight_headers(request))
            else:
                if not request.path.endswith(WITHOUT_KEY):
                    self._check_key(request)
                response = await handler(request)
            self._metrics.requests.labels(response.status).inc()
        except ApiError as error:
            response = self._respond(error)
        except web.HTTPRequestEntityTooLarge:
            limit = self._section.max_body_bytes
            response = self._respond(
                ApiError(413, f"Request payload size exceeds the limit: {limit} bytes.", "BODY_TOO_LARGE")
            )
        except web.HTTPMethodNotAllowed as error:
            headers["Allow"] = error.headers["Allow"]
            response = self._respond(
                ApiError(405, f"{PATH} takes POST requests, all other paths take GET requests.", "METHOD_NOT_ALLOWED")
            )
        except web.HTTPException as error:
            response = self._respond(ApiError(error.status if error.status in STATUSES else 400, error.reason))
        response.headers.update(headers | self._cors_headers(request))
        return response

    def _respond(self, refusal: ApiError) -> web.Response:
        """Return the response of an error, and count it."""
        headers = {"Retry-After": RETRY_AFTER[refusal.code]} if refusal.code in RETRY_AFTER else {}
        self._metrics.requests.labels(refusal.code).inc()
        self._metrics.refusals.labels(refusal.kind).inc()
        response = web.Response(
            body=refusal.body(), status=refusal.code, headers=headers, content_type="application/json"
        )
        if refusal.code in (408, 413):
            response.force_close()
        return response

    def _check_key(self, request: web.Request) -> None:
        """Check a request's key, where the service has one.

        Raises:
            ApiError: the key is missing or wrong.
        """
        if self._key is not None:
            check_key(self._key, [*request.query.getall("key", []), request.headers.get("x-goog-api-key", "")])

    def _cors_headers(self, request: web.Request) -> dict[str, str]:
        """Return the headers with which a browser shows the answer to the web page that asked for it."""
        origin = request.headers.get("Origin")
        if origin is None or not request.path.endswith(OF_SCORER):
            return {}
        if "*" in self._section.origins:
            return {"Access-Control-Allow-Origin": "*"}
        allowed = {"Access-Control-Allow-Origin": origin} if origin in self._section.origins else {}
        return {"Vary": "Origin", **allowed}

    def _offer(self, request: web.Request) -> _Offer:
        """Return the scorer that a request's path names, or the first one.

        Raises:
            ApiError: there is none of that name.
        """
        name = request.match_info.get("scorer")
        if name is None:
            return self._default
        if name not in self._offers:
            self._check_key(request)
            message = f"No scorer of the name {name[:MAX_NAME]} is served; there are: {', '.join(self._offers)}."
            raise ApiError(404, message, "UNKNOWN_SCORER")
        return self._offers[name]

    async def _analyze(self, request: web.Request) -> web.Response:
        offer = self._offer(request)
        asked = parse(await self._body(request))
        began = time.perf_counter()
        detected = None
        if not asked.languages and self._section.default_language is None:
            detected = await self._identify(asked.text)
        analysis = resolve(
            asked,
            offer.info.attributes,
            offer.info.languages,
            default_language=self._section.default_language,
            detected=detected,
            partial=self._section.partial_answers,
        )
        scored = await self._score(offer, (asked.text, analysis.language), self._section.timeout_seconds)
        body = answer(analysis, scored)
        self._metrics.texts.labels(analysis.language, offer.name).inc()
        self._metrics.seconds.observe(time.perf_counter() - began)
        return web.Response(body=body, content_type="application/json")

    async def _identify(self, text: str) -> str | None:
        """Return the code of a text's language, which may be none that a scorer knows; None if it is unknown."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._identifying, identify, text[:IDENTIFIED_CHARACTERS])

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
            raise wrongly_encoded() from None

    async def _score(self, offer: _Offer, item: Item, timeout_seconds: float) -> Scored:
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
                return await offer.batcher.score(item)
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
        offer = self._offer(request)
        host = request.headers.get("Host", "")
        if not _HOST.fullmatch(host):
            raise ApiError(400, "The document names this service's address, and the Host header is none.", "BAD_HOST")
        path = f"/{offer.name}/" if "scorer" in request.match_info else "/"
        document = discovery(f"{request.scheme}://{host}{path}")
        return web.Response(body=json.dumps(document).encode(), content_type="application/json")

    async def _report_card(self, request: web.Request) -> web.Response:
        card = self._offer(request).card()
        if "scorer" not in request.match_info and len(self._offers) > 1:
            card["scorers"] = {name: offer.card() for name, offer in self._offers.items()}
        return web.Response(body=json.dumps(card, ensure_ascii=False).encode(), content_type="application/json")

    async def _report_health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _report_readiness(self, request: web.Request) -> web.Response:
        for offer in self._offers.values():
            await self._score(offer, (PROBE, offer.info.languages[0]), READY_SECONDS)
        return web.Response(text="ok\n")

    async def _report_metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _is_preflight(request: web.Request) -> bool:
    """Whether a browser asks what a script of a web page may send."""
    is_asked = "Origin" in request.headers and "Access-Control-Request-Method" in request.headers
    return request.method == "OPTIONS" and is_asked and request.path.endswith(OF_SCORER)


def _preflight_headers(request: web.Request) -> dict[str, str]:
    """Return what a script of a web page may send: any headers, as those of Google's own script are many."""
    names = request.headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        **({"Access-Control-Allow-Headers": names} if _HEADER_NAMES.fullmatch(names) else {}),
    }
