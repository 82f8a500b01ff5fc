"""The service as its users meet it: a process of its own, Ray Serve behind it, Google's client and ours before it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from contextlib import contextmanager

import aiohttp
import psutil
import pytest

from tests.processes import descendants, finish, free_ports, start_python, wait_until
from xgray.config import Score, Serve, validate
from xgray.distributed.serve import run_service, scorer_info
from xgray.errors import InputError, StageError
from xgray.languages import LANGUAGES
from xgray.score.build import build_scorer
from xgray.score.scorer import score_texts

KEY = "serve-key-17"
TEXTS = [f"{text} number {index}" for index in range(3) for text in ("Good morning", "You idiot", "Nobody likes you,")]


def start(port, scorers=None, **serve):
    settings = json.dumps({"scorers": scorers or {"embedding": {}}, "serve": {"port": port} | serve})
    environment = {**os.environ, "XGRAY_SERVE_KEY": KEY}
    arguments = "-m", "tests.distributed.serve_driver", settings
    return start_python(*arguments, environment=environment, stderr=subprocess.STDOUT)


def ready(url):
    try:
        with urllib.request.urlopen(f"{url}/readyz?key={KEY}", timeout=20) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@contextmanager
def running(**serve):
    """Yield the process of a service that is ready, and its address."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    process = start(port, **serve)
    try:
        wait_until(lambda: ready(url), process)
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def service():
    """A service of two scorers."""
    dummy = {"scorer": "dummy", "unvalidated_languages": True}
    with running(scorers={"embedding": {}, "dummy": dummy}) as (process, url):
        yield process, url


@pytest.fixture(scope="module")
def growing_service():
    """A service that may add a second replica; the last test interrupts it."""
    with running(max_replicas=2, batch_size=8) as (process, url):
        yield process, url


@pytest.fixture(scope="module")
def expected():
    """The scores that the scorer gives in this process, by text."""
    scorer = build_scorer(Score())
    results = asyncio.run(score_texts(scorer, TEXTS, "en", "corrected"))
    return {text: one.scores["toxicity"] for text, one in zip(TEXTS, results, strict=True)}


def replicas(process):
    return descendants(process.pid, "ray::ServeRepli")


def request(text):
    return {"comment": {"text": text}, "languages": ["en"], "requestedAttributes": {"TOXICITY": {}}}


def value(answer):
    return answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]


async def analyze(session, text):
    async with session.post("/v1alpha1/comments:analyze", json=request(text), params={"key": KEY}) as response:
        return text, response.status, await response.json()


def session_of(url):
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout)


def num_correct(answers, expected):
    """Return how many requests were answered with their text's score; check that the others were refused properly."""
    num_scored = 0
    for text, status, answer in answers:
        if status == 200:
            assert value(answer) == expected[text]
            num_scored += 1
        else:
            assert status in (429, 503)
            assert answer["error"]["code"] == status
    return num_scored


@pytest.mark.slow
def test_our_perspective_client_gets_the_numbers_of_the_scorer_in_process(service, monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    settings = {"scorer": "perspective", "perspective_url": service[1], "execution": {"requests_per_second": 200}}
    texts = [*TEXTS, "line\u2028separator", "nul\x00", "🙂", "half \ud83d pair", ""]

    async def main(section):
        scorer = build_scorer(Score.model_validate(section))
        try:
            return {code: await score_texts(scorer, texts, code, "corrected") for code in ("en", "zh-hans")}
        finally:
            await scorer.close()

    served, in_process = asyncio.run(main(settings)), asyncio.run(main({}))
    for code, results in served.items():
        assert [(one.scores, one.error) for one in results] == [(one.scores, one.error) for one in in_process[code]]

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "another-key")
    with pytest.raises(StageError, match="check PERSPECTIVE_API_KEY"):
        asyncio.run(main(settings))


@pytest.mark.slow
def test_googles_client_is_built_from_our_document_and_gets_scores_and_errors(service, expected):
    from googleapiclient.discovery import build
    from googleapiclient.errors import HttpError

    # As in Perspective's examples, except for the address.
    client = build(
        "commentanalyzer",
        "v1alpha1",
        developerKey=KEY,
        discoveryServiceUrl=f"{service[1]}/$discovery/rest?version=v1alpha1",
        static_discovery=False,
    )
    for text in TEXTS[:3]:
        answer = client.comments().analyze(body=request(text)).execute()
        assert value(answer) == expected[text]
        assert answer["languages"] == ["en"]
    dummy = build(
        "commentanalyzer",
        "v1alpha1",
        developerKey=KEY,
        discoveryServiceUrl=f"{service[1]}/dummy/$discovery/rest?version=v1alpha1",
        static_discovery=False,
    )
    assert value(dummy.comments().analyze(body=request(TEXTS[0])).execute()) != expected[TEXTS[0]]
    with pytest.raises(HttpError) as raised:
        client.comments().analyze(body=request("")).execute()
    assert raised.value.status_code == 400
    assert raised.value.reason == "Comment must be non-empty."
    assert raised.value.error_details[0]["errorType"] == "COMMENT_EMPTY"


@pytest.mark.slow
def test_a_thousand_connections_at_once(service, expected):
    async def main():
        async with session_of(service[1]) as session:
            return await asyncio.gather(*(analyze(session, TEXTS[index % len(TEXTS)]) for index in range(1000)))

    assert num_correct(asyncio.run(main()), expected) == 1000


@pytest.mark.slow
def test_a_replica_killed_under_load_costs_no_correct_answer(service, expected):
    process, url = service

    async def main():
        stop = asyncio.Event()
        answers = []

        async def ask(session, offset):
            while not stop.is_set():
                answers.append(await analyze(session, TEXTS[(offset + len(answers)) % len(TEXTS)]))

        async with session_of(url) as session:
            asking = [asyncio.create_task(ask(session, offset)) for offset in range(16)]
            await asyncio.sleep(2)
            victims = {replica.pid: replica for replica in replicas(process)}
            num_before = len(answers)
            for victim in victims.values():
                victim.kill()
            while len([one for one in replicas(process) if one.pid not in victims]) < len(victims):
                await asyncio.sleep(0.2)
            while not await asyncio.to_thread(ready, url):
                await asyncio.sleep(0.5)
            num_again = len(answers)
            await asyncio.sleep(2)
            stop.set()
            await asyncio.gather(*asking)
        return answers[:num_before], answers[num_before:num_again], answers[num_again:]

    before, meanwhile, after = asyncio.run(main())
    assert num_correct(before, expected) == len(before) > 0
    num_correct(meanwhile, expected)
    assert num_correct(after, expected) == len(after) > 0


@pytest.mark.slow
def test_another_replica_starts_under_load(growing_service, expected):
    async def main():
        grown = asyncio.Event()

        async def ask(session):
            answers = []
            while not grown.is_set():
                answers.append(await analyze(session, TEXTS[len(answers) % len(TEXTS)]))
            return answers + [await analyze(session, text) for text in TEXTS]

        async with session_of(url) as session, asyncio.timeout(240):
            asking = [asyncio.create_task(ask(session)) for _ in range(32)]
            while len(replicas(process)) < 2:
                await asyncio.sleep(0.5)
            grown.set()
            return [one for answers in await asyncio.gather(*asking) for one in answers]

    process, url = growing_service
    assert len(replicas(process)) == 1
    answers = asyncio.run(main())
    assert num_correct(answers, expected) == len(answers)


@pytest.mark.slow
def test_an_interrupt_answers_requests_in_progress_and_leaves_no_process(growing_service, expected):
    async def main():
        async with session_of(url) as session:
            asking = [asyncio.create_task(analyze(session, TEXTS[index % len(TEXTS)])) for index in range(40)]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            process.send_signal(signal.SIGINT)
            return await asyncio.gather(*asking)

    process, url = growing_service
    children = psutil.Process(process.pid).children(recursive=True)
    assert num_correct(asyncio.run(main()), expected) == 40
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output[-3000:]
    assert not ready(url)
    assert KEY not in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


@pytest.mark.slow
def test_a_scorer_that_cannot_be_built_is_reported_in_one_line(tmp_path):
    output, _ = finish(start(*free_ports(1), {"embedding": {"labelled": str(tmp_path / "absent")}}), 1)
    (line,) = [line for line in output.splitlines() if line.startswith("InputError")]
    assert "no such file or folder" in line


def test_services_that_cannot_run_are_refused_before_anything_starts():
    with pytest.raises(InputError, match="perspective is a service already"):
        run_service({"perspective": Score(scorer="perspective")}, Serve())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"serve\.port: cannot listen at 127\.0\.0\.1"):
            run_service({"embedding": Score()}, Serve(port=taken.getsockname()[1]))
    with pytest.raises(InputError, match="max_replicas"):
        validate(Serve, {"min_replicas": 3, "max_replicas": 2}, "serve")


def test_a_scorer_without_declared_languages_is_served_only_if_allowed():
    section = Score(scorer="dummy")
    with pytest.raises(InputError, match=r"score\.classifier\.languages.*score\.unvalidated_languages: true"):
        scorer_info(build_scorer(section), section)
    allowed = Score(scorer="dummy", unvalidated_languages=True)
    assert scorer_info(build_scorer(allowed), allowed).languages == tuple(LANGUAGES)
