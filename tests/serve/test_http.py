"""The HTTP service with a local scorer in this process; tests/distributed/test_serve.py runs it behind Ray Serve."""

import asyncio
import gzip
import json
import logging

import pytest

from tests.serve.local_service import KEY, fixed, raw, running
from xgray.config import Score
from xgray.score.build import build_scorer
from xgray.score.scorer import score_texts
from xgray.serve.http import Unavailable


@pytest.fixture(scope="module")
def scorer():
    return build_scorer(Score())


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


def test_several_scorers_are_chosen_by_name():
    def score(answer, attribute="TOXICITY"):
        return answer["attributeScores"][attribute]["summaryScore"]["value"]

    async def main():
        seen = {}
        others = {"guard-2": fixed({"toxicity": 0.75, "threat": 0.25}, languages=("fr",))}
        async with running(fixed({"toxicity": 0.5}).score_batch, others=others) as session:
            for name in ("", "/embedding", "/guard-2", "/other"):
                body = request("bonjour", "fr" if name == "/guard-2" else "en")
                async with session.post(f"{name}/v1alpha1/comments:analyze", json=body) as response:
                    seen[name] = response.status, await response.json()
            for path in ("/card", "/guard-2/card", "/$discovery/rest", "/guard-2/$discovery/rest"):
                async with session.get(path) as response:
                    seen[path] = await response.json()
            assert (await session.get("/readyz")).status == 200
        return seen

    seen = asyncio.run(main())
    assert [score(seen[name][1]) for name in ("", "/embedding", "/guard-2")] == [0.5, 0.5, 0.75]
    assert seen["/other"][0] == 404
    assert "embedding, guard-2" in seen["/other"][1]["error"]["message"]
    assert seen["/card"]["attributes"] == ["toxicity"]
    assert seen["/card"]["scorers"]["guard-2"] == seen["/guard-2/card"]
    assert seen["/guard-2/card"]["languages"] == ["fr"]
    assert seen["/guard-2/$discovery/rest"]["baseUrl"] == seen["/$discovery/rest"]["baseUrl"] + "guard-2/"


SECRET = b"private-text-5"
CALL = b"POST /v1alpha1/comments:analyze?key=" + SECRET
MALFORMED = {
    "no HTTP": SECRET + b"\r\n\r\n",
    "version": CALL + b" HTTP/9.z\r\n\r\n",
    "space in the path": CALL + b" and HTTP/1.1\r\n\r\n",
    "method": b"P(ST /?key=" + SECRET + b" HTTP/1.1\r\n\r\n",
    "long line": CALL + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
    "long header": CALL + b" HTTP/1.1\r\nx-goog-api-key: " + SECRET * 700 + b"\r\n\r\n",
    "header": CALL + b" HTTP/1.1\r\nbad header " + SECRET + b"\r\n\r\n",
    "two lengths": CALL + b" HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + SECRET,
    "chunk": CALL + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz" + SECRET + b"\r\n\r\n",
    "late chunk": CALL + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{zz" + SECRET + b"\r\n\r\n",
    "compression": CALL + b" HTTP/1.1\r\nContent-Encoding: br\r\nContent-Length: 14\r\n\r\n" + SECRET,
    "address": b"GET http://[::1/" + SECRET + b" HTTP/1.1\r\n\r\n",
    "expectation": CALL + b" HTTP/1.1\r\nExpect: " + SECRET + b"\r\nContent-Length: 0\r\n\r\n",
    "host": b"GET /$discovery/rest HTTP/1.1\r\nHost: [" + SECRET + b"\r\n\r\n",
    "port": b"GET /$discovery/rest HTTP/1.1\r\nHost: x:" + SECRET + b"\r\n\r\n",
    "no host": b"GET /$discovery/rest HTTP/1.0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET,
    "second request": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET " + SECRET + b"\r\n\r\n",
}


def test_malformed_http_is_answered_in_json_and_logged_nowhere(caplog, capfd):
    caplog.set_level(0)

    async def main():
        async with running(fixed({"toxicity": 0.5}).score_batch) as session:
            answers = {name: await raw(session, content) for name, content in MALFORMED.items()}
            async with session.get("/metrics") as response:
                return answers, await response.text()

    answers, metrics = asyncio.run(main())
    for name, content in answers.items():
        head, _, body = content.rpartition(b"\r\n\r\n")
        assert b" 400 Bad Request\r\n" in head, name
        assert b"Content-Type: application/json" in head, name
        error = json.loads(body)["error"]
        assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT"), name
        assert SECRET not in content, name
    assert 'xgray_refusals_total{kind="MALFORMED_HTTP"}' in metrics
    written = metrics + caplog.text + "".join(capfd.readouterr())
    assert SECRET.decode() not in written
    assert "Traceback" not in written


def test_a_failure_of_the_service_is_logged_without_the_text(caplog):
    async def main():
        async def fails(items):
            raise RuntimeError(f"cannot score {items}")

        async with running(fails) as session:
            return await analyze(session, "a private text")

    status, body, _ = asyncio.run(main())
    assert (status, body["error"]["status"]) == (500, "INTERNAL")
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "RuntimeError" in record.getMessage()
    assert "private" not in caplog.text


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
            for path in ("/healthz", "/$discovery/rest?version=v1alpha1"):
                assert (await session.get(path)).status == 200
            for path in ("/readyz", "/metrics", "/card", "/embedding/card", "/other/card", "/other/$discovery/rest"):
                async with session.get(path) as response:
                    seen.append((response.status, await response.json(), response.headers))
                assert "embedding" not in json.dumps(seen[-1][1])
                assert (await session.get(path, headers={"x-goog-api-key": KEY})).status in (200, 404)
            async with session.get("/metrics", params={"key": KEY}) as response:
                return seen, await response.text()

    seen, metrics = asyncio.run(main())
    assert {status for status, _, _ in seen[5:]} == {403}
    seen = seen[:5]
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
    assert counts['xgray_texts_total{language="de",scorer="embedding"}'] == "2.0"
    assert counts['xgray_refusals_total{kind="COMMENT_EMPTY"}'] == "1.0"
    assert counts['xgray_refusals_total{kind="LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}'] == "1.0"
    assert counts["xgray_batch_texts_count"] == "3.0"
    assert counts["xgray_texts_under_way"] == "0.0"
