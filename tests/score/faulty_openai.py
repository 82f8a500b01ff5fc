"""A service with OpenAI's API that fails on demand and records every request."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.faulty_service import KEY, Received
from xgray.config import Score
from xgray.score.build import build_scorer

CATEGORIES = ("harassment", "harassment/threatening", "hate", "hate/threatening", "violence", "sexual", "self-harm")


def true_grade(text: str) -> int:
    """Return the grade that the service's judge gives a text."""
    return len(text) % 5


def true_category(text: str, category: str) -> float:
    return (len(text) * (CATEGORIES.index(category) + 3) % 101) / 100


def refusal(
    status: int, message: str, code: str | int | None = None, kind: str = "invalid_request_error"
) -> web.Response:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


class FaultyOpenAI:
    """Answers the first requests for a text with its ``faults`` in order, and later requests with a score."""

    def __init__(
        self, faults: dict[str, list[str]], seconds: float = 0.0, answers: dict[str, web.Response] | None = None
    ) -> None:
        self.answers = answers or {}
        self.faults = {text: list(listed) for text, listed in faults.items()}
        self.seconds = seconds
        self.received: list[Received] = []
        self.num_open = self.most_open = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, json.loads(body["messages"][1]["content"]), _grade_response)

    async def moderations(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, body["input"], _moderation_response)

    async def _answer(self, request: web.Request, body: dict[str, Any], text: str, scored: Any) -> web.StreamResponse:
        self.received.append(Received(time.monotonic(), text, body, request.query_string, dict(request.headers)))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            await asyncio.sleep(self.seconds)
            fault = self.faults[text].pop(0) if self.faults.get(text) else ""
            if fault == "reset":
                request.transport.abort()
            if fault == "half a body":
                response = web.StreamResponse(headers={"Content-Length": "500", "Content-Type": "application/json"})
                await response.prepare(request)
                await response.write(b'{"choices": [{"mess')
                request.transport.abort()
                return response
            if fault == "timeout":
                await asyncio.sleep(30)
            known = answers() | self.answers
            return scored(text) if not fault else known.get(fault) or web.Response(status=int(fault))
        finally:
            self.num_open -= 1

    def tries(self, text: str) -> list[Received]:
        return [request for request in self.received if request.text == text]


def says(content: Any, finish_reason: str = "stop", **message: Any) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return web.json_response({"id": "1", "choices": [{**choice, "finish_reason": finish_reason}]})


def _grade_response(text: str) -> web.Response:
    return says(f" {true_grade(text)}\n")


def _moderation_response(text: str) -> web.Response:
    scores = {name: true_category(text, name) for name in CATEGORIES}
    return web.json_response({"id": "1", "model": "m", "results": [{"flagged": True, "category_scores": scores}]})


def answers() -> dict[str, web.Response]:
    return {
        "429 wait": web.Response(status=429, headers={"Retry-After": "2"}),
        "429 wait a day": web.Response(status=429, headers={"Retry-After": "86400"}),
        "no quota": refusal(429, "You exceeded your current quota", "insufficient_quota"),
        "no JSON": web.Response(text="<html>upstream</html>"),
        "a list": web.json_response([]),
        "200 with an error": web.json_response({"error": {"message": "model is away", "code": 500}}),
        "200 with an error text": web.json_response({"error": "model is away"}),
        "too long": refusal(400, "This model's maximum context length is 512 tokens", "context_length_exceeded"),
        "too long for vLLM": refusal(
            400, "The decoder prompt (length 600) is longer than the maximum model length of 512.", 400
        ),
        "too long for llama.cpp": refusal(
            400, "the request exceeds the available context size", 400, "exceed_context_size_error"
        ),
        "too large": web.Response(status=413),
        "filtered by the service": refusal(400, "The response was filtered", "content_filter"),
        "no template": refusal(400, "default chat template is no longer allowed, so you must provide one", 400),
        "a proxy's 400": web.Response(status=400, text="<html>Bad Request</html>", content_type="text/html"),
        "unsupported": refusal(400, "Unsupported parameter: 'store'", "unsupported_parameter"),
        "no max_tokens": refusal(
            400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "unsupported_parameter"
        ),
        "no temperature": refusal(400, "'temperature' does not support 0 with this model.", "unsupported_value"),
        "wrong key": refusal(401, f"Incorrect API key provided: {KEY}"),
        "echo": refusal(400, f"what is {KEY}?"),
        "no model": refusal(404, "The model `m` does not exist", "model_not_found"),
        "moved": web.Response(status=308, headers={"Location": "http://127.0.0.1:1/"}),
        "a sentence": says("I would say 3."),
        "thinking": says("<think>Is it rude? 3 or 4", "length"),
        "a decimal": says("2.5"),
        "a fraction": says("3/4"),
        "two grades": says("3 or 4"),
        "five": says("5"),
        "two digits": says("12"),
        "another digit": says("²"),
        "nothing": says(None),
        "refused": says(None, refusal="I cannot help with that."),
        "filtered": says("", "content_filter"),
        "no choices": web.json_response({"id": "1", "choices": []}),
        "no categories": web.json_response({"results": [{"flagged": False}]}),
        "a word": web.json_response({"results": [{"category_scores": dict.fromkeys(CATEGORIES, "high")}]}),
        "one missing": web.json_response({"results": [{"category_scores": {"hate": 0.5}}]}),
    }


@asynccontextmanager
async def running(service: FaultyOpenAI, endpoint: str = "judge", **settings: Any):
    """Run the service for the duration of the block and yield its scorer."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", service.chat)
    app.router.add_post("/v1/moderations", service.moderations)
    execution = {"timeout_seconds": 2.0, "max_attempts": 4} | settings.pop("execution", {})
    async with TestServer(app) as server:
        given = {"url": f"http://127.0.0.1:{server.port}/v1", "model": "m", "endpoint": endpoint, "languages": ["en"]}
        values = {"scorer": "openai", "openai": given | settings.pop("options", {}), "execution": execution} | settings
        scorer = build_scorer(Score.model_validate(values))
        try:
            yield scorer
        finally:
            await scorer.close()
