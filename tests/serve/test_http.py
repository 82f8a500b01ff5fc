"""The HTTP service with a local scorer in this process; tests/distributed/test_serve.py runs it behind Ray Serve."""

import asyncio
import gzip
import json
import socket
from contextlib import asynccontextmanager

import aiohttp
import pytest

from xgray.config import Score, Serve
from xgray.score.build import build_scorer
from xgray.score.scorer import score_texts
from xgray.serve.http import ScorerInfo, ServedScorer, Service, Unavailable

KEY = "serve-key-17"
SCORER_INFO = ScorerInfo("embedding", ("toxicity",), ("en", "de"), {"version": "1", "agreement": {}})


@pytest.fixture(scope="module")
def scorer():
    return build_scorer(Score())


@asynccontextmanager
async def running(score_batch, key=None, num_concurrent=2, others=None, **settings):
    """Run a service for the duration of the block and yield a session with it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        scorers = {"embedding": ServedScorer(SCORER_INFO, score_batch), **(others or {})}
        service = Service(Serve.model_validate(settings), scorers, num_concurrent, key)
        async with service.listening(bound):
            address = f"http://127.0.0.1:{bound.getsockname()[1]}"
            async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as session:
                yield session


def in_process(scorer, sizes=None):
    async def score_batch(items):
        if sizes is not None:
            sizes.append(len(items))
        return [(await score_texts(scorer, [text], language, "corrected"))[0] for text, language in items]

    return score_batch


def request(text, language="en"):
    return {"comment": {"text": text}, "languages": [language], "requestedAttributes": {"TOXICITY": {}}}


async def analyze(session, text, language="en", **options):
    async with session.post("/v1alpha1/comments:analyze", json=request(text, language), **options) as response:
        return response.status, await response.json(), response.headers


def value(answer):
    return answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]


def test_each_request_gets_the_score_of_its_text_and_batches_grow_with_the_load(scorer):
    texts = [f"you are number {index} of them" for index in range(60)]
    sizes = []

    async def main():
        async with running(in_process(scorer, sizes), batch_size=16) as session:
            alone = await analyze(session, texts[0])
            together = await asyncio.gather(*(analyze(session, text) for text in texts))
            expected = await score_texts(scorer, texts, "en", "corrected")
            return alone, together, expected

    alone, together, expected = asyncio.run(main())
    assert alone[0] == 200
    assert [value(result) for _, result, _ in together] == [result.scores["toxicity"] for result in expected]
    assert sizes[0] == 1
    assert max(sizes) == 16
    assert sum(sizes) == 61


def test_bad_requests_are_refused_with_their_status(scorer):
    path = "/v1alpha1/comments:analyze"
    whole = json.dumps(request("x" * 30_000)).encode()

    async def chunks():
        for _ in range(100):
            yield b"x" * 1000

    async def main():
        seen = {}
        async with running(in_process(scorer), max_body_bytes=40_000) as session:
            for name, method, where, options in (
                ("too long", "POST", path, {"data": whole}),
                ("empty", "POST", path, {"json": request("")}),
                ("white", "POST", path, {"json": request(" \n")}),
                ("cut", "POST", path, {"data": whole[:50]}),
                ("oversized", "POST", path, {"data": b"x" * 40_001}),
                ("oversized in chunks", "POST", path, {"data": chunks()}),
                ("bomb", "POST", path, {"data": gzip.compress(b" " * 10**7), "headers": {"Content-Encoding": "gzip"}}),
                ("no gzip", "POST", path, {"data": b"plain", "headers": {"Content-Encoding": "gzip"}}),
                ("get", "GET", path, {}),
                ("elsewhere", "POST", "/v1alpha1/comments:suggestscore", {"json": {}}),
            ):
                async with session.request(method, where, **options) as response:
                    seen[name] = response.status, (await response.json())["error"], response.headers.get("Allow")
            seen["gzip"] = await analyze(session, "hello", compress="gzip")
        return seen

    seen = asyncio.run(main())
    assert seen.pop("gzip")[0] == 200
    assert {name: status for name, (status, _, _) in seen.items()} == {
        "too long": 400,
        "empty": 400,
        "white": 400,
        "cut": 400,
        "oversized": 413,
        "oversized in chunks": 413,
        "bomb": 413,
        "no gzip": 400,
        "get": 405,
        "elsewhere": 404,
    }
    for name, kind in (("too long", "COMMENT_TOO_LONG"), ("empty", "COMMENT_EMPTY"), ("white", "COMMENT_EMPTY")):
        assert seen[name][1]["details"][0]["errorType"] == kind
    assert seen["get"][2] == "POST"


def test_slow_clients_are_disconnected_and_do_not_delay_others(scorer):
    async def drip(session, at_once, slowly):
        """Send bytes slowly; return the response and the seconds that it took."""
        began = asyncio.get_running_loop().time()
        reader, writer = await asyncio.open_connection(session._base_url.host, session._base_url.port)
        response = asyncio.create_task(reader.read(1000))
        writer.write(at_once)
        for byte in slowly:
            if response.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
        try:
            received = await response
        except ConnectionResetError:  # The service closed the connection while a byte was on its way.
            received = b""
        writer.close()
        return received, asyncio.get_running_loop().time() - began

    head = b"POST /v1alpha1/comments:analyze HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n"

    async def main():
        async with running(in_process(scorer), read_timeout_seconds=1.0) as session:
            parts = ((b"", b""), (b"", head), (head, b"{" * 900))
            slow = [asyncio.create_task(drip(session, *part)) for part in parts]
            quick = [await analyze(session, f"quick {index}") for index in range(20)]
            return quick, await asyncio.gather(*slow)

    quick, (silent, slow_head, slow_body) = asyncio.run(main())
    assert {status for status, _, _ in quick} == {200}
    assert silent[0] == slow_head[0] == b""
    assert b" 408 " in slow_body[0].splitlines()[0]
    assert b"was not sent within 1 s" in slow_body[0]
    assert max(silent[1], slow_head[1], slow_body[1]) < 3


def test_overload_and_unavailable_scorers_are_answered_with_429_and_503():
    async def main():
        is_released = asyncio.Event()

        async def stuck(items):
            await is_released.wait()
            raise Unavailable("The scorer died.")

        async with running(stuck, max_requests=3, batch_size=1, timeout_seconds=1.0) as session:
            first = [asyncio.create_task(analyze(session, str(index))) for index in range(3)]
            await asyncio.sleep(0.3)
            refused = await analyze(session, "one more")
            assert (await session.get("/healthz")).status == 200
            not_ready = await session.get("/readyz")
            late = await asyncio.gather(*first)
            is_released.set()
            return refused, not_ready.status, late, await analyze(session, "again")

    refused, not_ready, late, again = asyncio.run(main())
    assert refused[0] == not_ready == 429
    assert refused[1]["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert float(refused[2]["Retry-After"]) > 0
    for status, body, headers in (*late, again):
        assert status == 503
        assert body["error"]["status"] == "UNAVAILABLE"
        assert float(headers["Retry-After"]) > 0
    assert "within 1 s" in late[0][1]["error"]["message"]
    assert again[1]["error"]["message"] == "The scorer died."


def test_the_card_says_what_the_scorer_is(scorer):
    async def main():
        async with running(in_process(scorer)) as session, session.get("/card") as response:
            return response.status, await response.json()

    status, card = asyncio.run(main())
    assert status == 200
    assert card == {"attributes": ["toxicity"], "languages": ["en", "de"], "version": "1", "agreement": {}}


def test_the_key_is_required_and_never_repeated(scorer, caplog, capfd):
    caplog.set_level(0)

    async def main():
        async with running(in_process(scorer), key=KEY) as session:
            seen = [
                await analyze(session, "hello", params={"key": KEY}),
                await analyze(session, "hello", headers={"x-goog-api-key": KEY}),
                await analyze(session, "hello"),
                await analyze(session, "hello", params={"key": KEY + "8"}),
                await analyze(session, "hello", params={"key": "wrong-key"}, headers={"x-goog-api-key": KEY}),
            ]
            for path in ("/healthz", "/readyz", "/metrics", "/$discovery/rest?version=v1alpha1"):
                assert (await session.get(path)).status == 200
            async with session.get("/metrics") as response:
                return seen, await response.text()

    seen, metrics = asyncio.run(main())
    assert [status for status, _, _ in seen] == [200, 200, 403, 400, 400]
    assert seen[2][1]["error"]["status"] == "PERMISSION_DENIED"
    assert seen[3][1]["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    written = json.dumps([body for _, body, _ in seen]) + metrics + caplog.text + "".join(capfd.readouterr())
    assert KEY not in written
    assert "wrong-key" not in written


def test_requests_texts_and_refusals_are_counted(scorer):
    async def main():
        async with running(in_process(scorer)) as session:
            for text, language in (("hello", "en"), ("hallo", "de"), ("hallo", "de"), ("", "en"), ("hei", "fi")):
                await analyze(session, text, language)
            async with session.get("/metrics") as response:
                return dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")

    counts = asyncio.run(main())
    assert counts['xgray_requests_total{status="200"}'] == "3.0"
    assert counts['xgray_requests_total{status="400"}'] == "2.0"
    assert counts['xgray_texts_total{language="de"}'] == "2.0"
    assert counts['xgray_refusals_total{kind="COMMENT_EMPTY"}'] == "1.0"
    assert counts['xgray_refusals_total{kind="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}'] == "1.0"
    assert counts["xgray_batch_texts_count"] == "3.0"
    assert counts["xgray_texts_under_way"] == "0.0"
