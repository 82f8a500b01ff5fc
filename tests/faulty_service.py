"""A service with the Perspective API that fails on demand and records every request."""

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
    """Return the score that the service gives a text."""
    return hashlib.sha256(text.encode()).digest()[0] / 255


def refusal(code: int, message: str, **detail: str) -> web.Response:
    error = {"code": code, "message": message, "status": "INVALID_ARGUMENT"}
    return web.json_response({"error": {**error, "details": [detail] if detail else []}}, status=code)


class FaultyService:
    """Answers the first requests for a text with its ``faults`` in order, and later requests with a score."""

    def __init__(self, faults: dict[str, list[str]]) -> None:
        self.faults = {text: list(listed) for text, listed in faults.items()}
        self.received: list[Received] = []
        self.port = 0
        """The port of the first run, used again by later ones: scorers distinguish services by their addresses."""

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
            fault = "language"  # The service measures no threats in Czech, whatever the text.
        return answers(text, body).get(fault) or web.Response(status=int(fault))

    def tries(self, text: str) -> list[Received]:
        return [request for request in self.received if request.text == text]

    async def times(self, request: web.Request) -> web.Response:
        return web.json_response([request.time for request in self.received])


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
    """Start the service in this event loop and return its port."""
    app = web.Application()
    app.router.add_post("/v1alpha1/comments:analyze", service.analyze)
    app.router.add_get("/times", service.times)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner.addresses[0][1]


@contextmanager
def serving(service: FaultyService):
    """Run the service in a thread for the duration of the block and yield its address."""
    loop, started, ports = asyncio.new_event_loop(), threading.Event(), []

    async def announce():
        ports.append(await start(service))
        started.set()

    def run_loop():
        loop.create_task(announce())
        loop.run_forever()

    thread = threading.Thread(target=run_loop, daemon=True)
    thread.start()
    started.wait()
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@contextmanager
def serving_in_process(faults: dict[str, list[str]]):
    """Run a service in another process; yield its address and a function that returns the times of its requests.

    In this process the times would be wrong: a garbage collection can take half a second, and all requests that arrive
    in the meantime would be read at its end.
    """
    command = [sys.executable, __file__, json.dumps(faults)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def times() -> list[float]:
            with urllib.request.urlopen(f"{url}/times") as answer:
                return sorted(json.load(answer))

        yield url, times
        process.terminate()


@asynccontextmanager
async def running(service: FaultyService, **settings: Any):
    """Run the service for the duration of the block and yield its scorer."""
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


def dump_records(records: list[Any]) -> str:
    """Return log records as text, with everything that hooks attached to them."""
    return json.dumps([{key: repr(value) for key, value in vars(record).items()} for record in records])


async def _serve_until_ended() -> None:
    print(await start(FaultyService(json.loads(sys.argv[1]))), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_until_ended())
