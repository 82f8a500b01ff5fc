"""Clients of Perspective as they are published, against a service: Python, Node, curl, and a script of a web page.

The requests are those of Google's documentation (github.com/conversationai/perspectiveapi, 1-get-started and 2-api);
programs that are installed send them themselves.
"""

import asyncio
import json
import shutil

import pytest

from tests.serve.local_service import KEY, fixed, running

PATH = "/v1alpha1/comments:analyze"
SCORES = {"toxicity": 0.25, "insult": 0.75}
PYTHON = {"comment": {"text": "friendly greetings from python"}, "requestedAttributes": {"TOXICITY": {}}}
NODE = {
    "comment": {"text": "Jiminy cricket! Well gosh durned it! Oh damn it all!"},
    "requestedAttributes": {"TOXICITY": {}},
}
CURL = """{comment: {text: "what kind of idiot name is foo?"},
       languages: ["en"],
       requestedAttributes: {TOXICITY:{}} }"""
DETECTED = {
    "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.25, "type": "PROBABILITY"}}},
    "languages": ["en"],
    "detectedLanguages": ["en"],
}
NAMED = {name: value for name, value in DETECTED.items() if name != "detectedLanguages"}


def serve(main, **settings):
    """Return what ``main(session)`` returns, with a service of :data:`SCORES`."""

    async def with_service():
        scorer = fixed(SCORES, ("en", "pt", "zh-hans"))
        async with running(scorer.score_batch, info=scorer.info, others={"forum": scorer}, **settings) as session:
            return await main(session)

    return asyncio.run(with_service())


def address(session):
    return str(session._base_url).rstrip("/")


async def post(session, body, path=PATH, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(path, data=content, **options) as response:
        return response.status, await response.json(), response.headers


async def run_program(*command):
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return json.loads(output)


def test_googles_python_client():
    from googleapiclient import discovery

    def analyze(url):
        client = discovery.build(
            "commentanalyzer",
            "v1alpha1",
            developerKey=KEY,
            discoveryServiceUrl=f"{url}/$discovery/rest?version=v1alpha1",
            static_discovery=False,
        )
        return client.comments().analyze(body=PYTHON).execute()

    async def main(session):
        addresses = address(session), f"{address(session)}/forum"
        return [await asyncio.to_thread(analyze, url) for url in addresses]

    first, forum = serve(main, key=KEY)
    assert first == DETECTED
    assert forum["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == SCORES["toxicity"]


def test_googles_node_client():
    headers = {
        "x-goog-api-client": "gdcl/7.2.0 gl-node/20.20.2",
        "User-Agent": "google-api-nodejs-client/7.2.0 (gzip)",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/json",
    }

    async def main(session):
        return (await post(session, NODE, params={"key": KEY}, headers=headers))[:2]

    assert serve(main, key=KEY) == (200, DETECTED)


@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_a_request_of_node_itself():
    async def main(session):
        url = json.dumps(f"{address(session)}{PATH}?key={KEY}")
        options = f"{{method: 'POST', body: JSON.stringify({json.dumps(NODE)})}}"
        script = f"fetch({url}, {options}).then(answer => answer.text()).then(console.log)"
        return await run_program("node", "--eval", script)

    assert serve(main, key=KEY) == DETECTED


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_googles_example_for_curl():
    async def main(session):
        url = f"{address(session)}{PATH}?key={KEY}"
        return await run_program(
            "curl", "--silent", "-H", "Content-Type: application/json", "--data", CURL, "--noproxy", "*", url
        )

    assert serve(main, key=KEY) == NAMED


PREFLIGHT = {
    "Origin": "https://forum.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,x-goog-api-client",
}


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({}, "*"), ({"origins": ["https://forum.example"]}, "https://forum.example"), ({"origins": []}, None)],
)
def test_a_script_of_a_web_page(settings, allowed):
    """A browser asks first, without a key, and reads an answer only with the header that allows it."""

    async def main(session):
        async with session.options(PATH, params={"key": KEY}, headers=PREFLIGHT) as response:
            seen = {"preflight": (response.status, None, response.headers)}
        origin = {"Origin": "https://forum.example"}
        seen["answer"] = await post(session, PYTHON, params={"key": KEY}, headers=origin)
        seen["refusal"] = await post(session, PYTHON, headers=origin)
        seen["named"] = await post(session, PYTHON, f"/forum{PATH}", params={"key": KEY}, headers=origin)
        async with session.get("/metrics", params={"key": KEY}, headers=origin) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
        async with session.options(PATH) as response:
            assert response.status == 403
        return seen

    seen = serve(main, key=KEY, **settings)
    assert {name: status for name, (status, _, _) in seen.items()} == {
        "preflight": 200,
        "answer": 200,
        "refusal": 403,
        "named": 200,
    }
    assert {headers.get("Access-Control-Allow-Origin") for _, _, headers in seen.values()} == {allowed}
    headers = seen["preflight"][2]
    assert headers["Access-Control-Allow-Headers"] == "content-type,x-goog-api-client"
    assert "POST" in headers["Access-Control-Allow-Methods"]


def test_pages_of_other_sites_are_not_allowed():
    async def main(session):
        return await post(session, PYTHON, headers={"Origin": "https://other.example"})

    status, _, headers = serve(main, origins=["https://forum.example"])
    assert status == 200
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Vary"] == "Origin"


def test_the_language_is_identified_assumed_or_refused():
    short = PYTHON | {"comment": {"text": "ok"}}
    other = PYTHON | {"comment": {"text": "Tämä on suomenkielinen lause, jota kukaan ei ymmärrä."}}

    async def main(session):
        return [(await post(session, body))[:2] for body in (PYTHON, short, other)]

    found, unknown, finnish = serve(main)
    assert found == (200, DETECTED)
    assert unknown[0] == 400
    assert unknown[1]["error"]["details"][0]["errorType"] == "LANGUAGE_DETECTION_FAILED"
    (detail,) = finnish[1]["error"]["details"]
    assert detail["languageNotSupportedByAttributeError"] == {"requestedLanguages": ["fi"], "attribute": "TOXICITY"}
    for status, answer in serve(main, default_language="pt"):
        assert (status, answer) == (200, NAMED | {"languages": ["pt"]})


def test_a_long_text_without_language_does_not_stop_the_service():
    async def main(session):
        async with asyncio.timeout(5):
            return await post(session, PYTHON | {"comment": {"text": "x" * 20_000}})

    assert serve(main)[0] == 400


def test_attributes_that_are_not_measured_are_refused_or_left_out():
    more = NODE | {"requestedAttributes": {"TOXICITY": {}, "PROFANITY": {}, "NUANCE_EXPERIMENTAL": {}, "INSULT": {}}}
    only = NODE | {"requestedAttributes": {"PROFANITY": {}}}

    async def main(session):
        return [(await post(session, body))[:2] for body in (more, only)]

    for status, answer in serve(main):
        assert status == 400
        assert answer["error"]["details"][0]["languageNotSupportedByAttributeError"]["attribute"] == "PROFANITY"
        assert "TOXICITY, INSULT in en, pt, zh" in answer["error"]["message"]
    (status, answer), (refused, _) = serve(main, partial_answers=True)
    assert (status, refused) == (200, 400)
    assert {name: each["summaryScore"]["value"] for name, each in answer["attributeScores"].items()} == {
        "TOXICITY": 0.25,
        "INSULT": 0.75,
    }


def test_spans_regions_and_a_byte_order_mark():
    body = NODE | {"languages": ["pt-BR"], "spanAnnotations": True}

    async def main(session):
        return await post(session, b"\xef\xbb\xbf" + json.dumps(body).encode())

    status, answer, _ = serve(main)
    score = {"value": 0.25, "type": "PROBABILITY"}
    span = {"begin": 0, "end": len(NODE["comment"]["text"]), "score": score}
    assert (status, answer["languages"]) == (200, ["pt-BR"])
    assert answer["attributeScores"] == {"TOXICITY": {"spanScores": [span], "summaryScore": score}}
