"""A service that speaks Perspective's protocol, fails as it is told, and keeps an account of every request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from xgray.config import Score
from xgray.score.build import build_scorer

KEY = "secret-key-17"


@dataclass
class Received:
    time: float
    text: str
    body: dict[str, Any]
    query: str
    headers: dict[str, str]


def true_score(text: str) -> float:
    """The score that the service has for a text."""
    return hashlib.sha256(text.encode()).digest()[0] / 255


def refusal(code: int, message: str, **detail: str) -> web.Response:
    error = {"code": code, "message": message, "status": "INVALID_ARGUMENT"}
    return web.json_response({"error": {**error, "details": [detail] if detail else []}}, status=code)


class FaultyService:
    """``faults[text]`` are the answers to the tries of that text, in order; after them it is scored."""

    def __init__(self, faults: dict[str, list[str]]) -> None:
        self.faults = {text: list(listed) for text, listed in faults.items()}
        self.received: list[Received] = []
        self.port = 0
        """Of the first time that it ran, and kept: by its address it is told from other services."""

    async def analyze(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["comment"]["text"]
        self.received.append(Received(time.monotonic(), text, body, request.query_string, dict(request.headers)))
        fault = self.faults[text].pop(0) if self.faults.get(text) else ""
        if fault == "reset":
            request.transport.abort()
        if fault == "half a body":
            response = web.StreamResponse(headers={"Content-Length": "500"})
            await response.prepare(request)
            await response.write(b'{"attributeScores": {"TOXICITY"')
            request.transport.abort()
            return response
        if fault == "timeout":
            await asyncio.sleep(30)
        if fault == "" and body["languages"] == ["cs"] and "THREAT" in body["requestedAttributes"]:
            fault = "language"  # the service's own limit, for every text
        return answers(text, body).get(fault) or web.Response(status=int(fault))

    def tries(self, text: str) -> list[Received]:
        return [one for one in self.received if one.text == text]

    async def account(self, request: web.Request) -> web.Response:
        return web.json_response([one.time for one in self.received])


def answers(text: str, body: dict[str, Any]) -> dict[str, web.Response]:
    def summary(value: Any) -> web.Response:
        scores = {
            name: {"summaryScore": {"value": value, "type": "PROBABILITY"}} for name in body["requestedAttributes"]
        }
        return web.json_response({"attributeScores": scores, "languages": body["languages"]})

    return {
        "": summary(true_score(text)),
        "429 wait": web.Response(status=429, headers={"Retry-After": "2"}),
        "429 wait a day": web.Response(status=429, headers={"Retry-After": "86400"}),
        "no JSON": web.Response(text="<html>upstream</html>"),
        "a list": web.json_response([]),
        "empty": refusal(400, "Comment must be non-empty.", errorType="COMMENT_EMPTY"),
        "too long": refusal(400, "Comment text was too many bytes.", errorType="COMMENT_TOO_LONG"),
        "language": refusal(
            400,
            "Attribute THREAT does not support request languages: cs",
            errorType="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        ),
        "undetected": refusal(400, "Unable to detect language"),
        "200 with an error": web.json_response({"error": {"code": 500, "message": "model is away"}}),
        "no attribute": web.json_response({"attributeScores": {}, "languages": ["en"]}),
        "null": summary(None),
        "a word": summary("high"),
        "seven": summary(7),
        "unknown key": refusal(400, f"API key {KEY} not valid.", reason="API_KEY_INVALID"),
        "a proxy's 400": web.Response(status=400, text="<html>Bad Request</html>", content_type="text/html"),
        "echo": refusal(400, f"what is {KEY}?"),
        "moved": web.Response(status=308, headers={"Location": "http://127.0.0.1:1/"}),
    }


def most_in_a_second(times: list[float]) -> int:
    return max(sum(1 for other in times if first <= other < first + 1) for first in times)


async def start(service: FaultyService) -> int:
    """Serve in this event loop, and return the port."""
    app = web.Application()
    app.router.add_post("/v1alpha1/comments:analyze", service.analyze)
    app.router.add_get("/account", service.account)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner.addresses[0][1]


@contextmanager
def serving(service: FaultyService):
    """The service's address; it runs in a thread for the time of the block."""
    loop, started, ports = asyncio.new_event_loop(), threading.Event(), []

    async def announce():
        ports.append(await start(service))
        started.set()

    def forever():
        loop.create_task(announce())
        loop.run_forever()

    thread = threading.Thread(target=forever, daemon=True)
    thread.start()
    started.wait()
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@contextmanager
def serving_apart(faults: dict[str, list[str]]):
    """The address of a service in a process of its own, and a call for the times of the requests that it has seen.

    Its clock is not stopped by what this process does: a collection of garbage among the modules of all tests takes
    half a second, and what arrives meanwhile is all read at its end.
    """
    command = [sys.executable, __file__, json.dumps(faults)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def times() -> list[float]:
            with urllib.request.urlopen(f"{url}/account") as answer:
                return sorted(json.load(answer))

        yield url, times
        process.terminate()


@asynccontextmanager
async def running(service: FaultyService, **settings: Any):
    """The scorer of a service that runs for the time of the block."""
    app = web.Application()
    app.router.add_post("/v1alpha1/comments:analyze", service.analyze)
    execution = {"requests_per_second": 200, "timeout_seconds": 1.0, "max_attempts": 4} | settings.pop("execution", {})
    async with TestServer(app, port=service.port or None) as server:
        service.port = server.port
        url = f"http://127.0.0.1:{server.port}"
        values = {"perspective_url": url, "execution": execution} | settings
        scorer = build_scorer(Score.model_validate({"scorer": "perspective", **values}))
        try:
            yield scorer
        finally:
            await scorer.close()


def everything_said(records: list[Any]) -> str:
    """Log records with all that hooks put beside their message."""
    return json.dumps([{key: repr(value) for key, value in vars(record).items()} for record in records])


async def _serve_until_ended() -> None:
    print(await start(FaultyService(json.loads(sys.argv[1]))), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_until_ended())
