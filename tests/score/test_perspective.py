import asyncio
import json
import logging

import pytest

from tests.faulty_service import (
    KEY,
    FaultyService,
    dump_records,
    most_in_a_second,
    running,
    serving_in_process,
    true_score,
)
from xgray.config import Score
from xgray.errors import InputError, StageError
from xgray.rows import EMPTY_TEXT
from xgray.score.build import build_scorer
from xgray.score.scorer import Scored, ScorerId, score_texts
from xgray.score.service import retry_after_seconds
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.store import ScoreStore


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def score_all(service, texts, language="en", **settings):
    async def main():
        async with running(service, **settings) as scorer:
            empty_text = settings.get("empty_text", "corrected")
            return await score_texts(scorer, texts, language, empty_text), scorer.provenance()

    return asyncio.run(main())


def test_a_request_follows_the_protocol():
    service = FaultyService({})
    results, _ = score_all(service, ["guten Tag"], "zh-hans", attributes=["toxicity", "severe_toxicity"])
    (received,) = service.received
    assert received.body == {
        "comment": {"text": "guten Tag"},
        "languages": ["zh"],
        "requestedAttributes": {"TOXICITY": {}, "SEVERE_TOXICITY": {}},
        "doNotStore": True,
    }
    assert received.headers["x-goog-api-key"] == KEY
    assert received.query == ""
    assert results[0].scores == {"toxicity": true_score("guten Tag"), "severe_toxicity": true_score("guten Tag")}


TEMPORARY = {
    "429 once": ["429 wait"],
    "500 then 503": ["500", "503"],
    "times out": ["timeout"],
    "is reset": ["reset"],
    "comes half": ["half a body"],
    "is no JSON": ["no JSON"],
    "is a list": ["a list"],
    "many of them": ["500", "reset", "429"],
}
REFUSED = {
    "empty": "COMMENT_EMPTY",
    "too long": "COMMENT_TOO_LONG",
    "language": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
    "undetected": "Unable to detect language",
    "200 with an error": "model is away",
    "no attribute": "no score",
    "null": "no score",
    "a word": "no score",
    "seven": "no score",
}


def test_every_text_gets_a_score_or_a_reason(caplog):
    caplog.set_level(logging.DEBUG)
    faults = TEMPORARY | {f"refused: {fault}": [fault] for fault in REFUSED} | {"never": ["500"] * 9, "echo": ["echo"]}
    texts = [*faults, "plain", "plain", ""]
    service = FaultyService(faults)
    results, provenance = score_all(service, texts)
    by_text = dict(zip(texts, results, strict=True))

    for text in [*TEMPORARY, "plain"]:
        assert by_text[text].scores == {"toxicity": true_score(text)}, text
        assert by_text[text].error is None
        assert len(service.tries(text)) == len(faults.get(text, [])) + 1, text
    for fault, reason in REFUSED.items():
        refused = by_text[f"refused: {fault}"]
        assert refused.scores is None
        assert reason in refused.error
        assert len(service.tries(f"refused: {fault}")) == 1, "a refusal of the text is not tried again"
    assert by_text["never"].scores is None
    assert "500" in by_text["never"].error
    assert "4 times" in by_text["never"].error
    assert len(service.tries("never")) == 4
    assert by_text[""].scores is None
    assert by_text[""].error == EMPTY_TEXT
    assert not service.tries("")

    first, second = service.tries("429 once")
    assert second.time - first.time >= 2, "Retry-After is honoured"
    assert provenance["num_texts"] == len(set(texts)) - 1
    assert provenance["num_requests"] == len(service.received)
    assert provenance["num_failed_requests"] == sum(map(len, TEMPORARY.values())) + 4
    assert provenance["num_retries"] == provenance["num_failed_requests"] - 1, "the last try of one text"
    assert provenance["num_missing"] == len(REFUSED) + 2
    json.dumps(provenance)

    assert not any(KEY in request.query for request in service.received)
    assert by_text["echo"].error == "status 400: what is ***?"
    assert KEY not in dump_records(caplog.records)
    assert KEY not in repr(results) + repr(provenance)


def test_only_googles_refusal_of_a_text_is_permanent():
    faults = ["empty", "too long", "undetected", "413", "a proxy's 400"]
    results, _ = score_all(FaultyService({fault: [fault] for fault in faults}), faults)
    assert all(result.error.startswith("status 4") for result in results)
    assert [result.is_permanent for result in results] == [True] * 4 + [False]


def test_an_attribute_is_not_requested_again_in_a_language_without_it():
    service = FaultyService({})

    async def main():
        async with running(service, attributes=["toxicity", "threat"], execution={"concurrency": 1}) as scorer:
            czech = await scorer.score(["ahoj", "nazdar"], "cs")
            return czech + await scorer.score(["hello"], "en"), scorer.provenance()

    (ahoj, nazdar, hello), provenance = asyncio.run(main())
    assert ahoj.scores == {"toxicity": true_score("ahoj")}
    assert nazdar.scores == {"toxicity": true_score("nazdar")}
    assert hello.scores == {"toxicity": true_score("hello"), "threat": true_score("hello")}
    assert [list(request.body["requestedAttributes"]) for request in service.received] == [
        ["TOXICITY", "THREAT"],
        ["TOXICITY"],
        ["TOXICITY"],
        ["TOXICITY", "THREAT"],
    ]
    assert provenance["not_measured"] == ["threat in cs"]


def test_a_language_without_any_of_the_attributes_costs_one_request():
    service = FaultyService({})

    async def main():
        async with running(service, attributes=["threat"], execution={"concurrency": 1}) as scorer:
            return await scorer.score(["ahoj", "nazdar"], "cs")

    assert [result.scores for result in asyncio.run(main())] == [None, None]
    assert len(service.received) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("403", "check PERSPECTIVE_API_KEY"),
        ("401", "check PERSPECTIVE_API_KEY"),
        ("unknown key", "check PERSPECTIVE_API_KEY"),
        ("404", "check score.perspective_url"),
        ("moved", "check score.perspective_url"),
        ("429 wait a day", "asks to wait 86400 s"),
    ],
)
def test_a_failure_that_every_text_would_meet_stops_the_stage(fault, message):
    service = FaultyService({"text": [fault]})
    with pytest.raises(StageError, match=message) as raised:
        score_all(service, ["text"])
    assert len(service.received) == 1
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__


def test_texts_arrive_unchanged_except_for_surrogates():
    kept = ["line\u2028separator", "bell\x07 tab\t nul\x00 end", "emoji 🙂 café 你好", '{"quoted": "\\"}', " \u200b"]
    repaired = {"half \ud83d pair": "half \ufffd pair", "a pair in halves \ud83d\ude42": "a pair in halves 🙂"}
    service = FaultyService({})
    results, _ = score_all(service, [*kept, *repaired])
    assert {request.text for request in service.received} == {*kept, *repaired.values()}
    assert [result.scores["toxicity"] for result in results] == [
        true_score(text) for text in [*kept, *repaired.values()]
    ]


def test_texts_that_are_too_long_for_the_service_are_not_sent():
    longest = "x" * 20480
    service = FaultyService({})
    results, _ = score_all(service, [longest, "x" * 20481, "é" * 10241, "x" * 30000])
    assert [request.text for request in service.received] == [longest]
    assert results[0].scores
    for result in results[1:]:
        assert result.scores is None
        assert result.error.startswith("too long")


def test_the_released_protocol_scores_one_space_for_an_empty_text():
    service = FaultyService({})
    results, _ = score_all(service, ["", "  \n", "word"], empty_text="released")
    assert {request.text for request in service.received} == {" ", "  \n", "word"}
    assert results[0].scores == {"toxicity": true_score(" ")}
    corrected, _ = score_all(FaultyService({}), ["", "  \n", "word"])
    assert [result.error for result in corrected] == [EMPTY_TEXT, EMPTY_TEXT, None]


def test_the_rate_limit_holds_in_every_second_with_failures_and_retries():
    texts = [f"text {index}" for index in range(70)]
    faults = {text: [["429"], ["500"], ["reset"]][index % 3] for index, text in enumerate(texts) if index % 7 == 0}

    async def main(url):
        execution = {"requests_per_second": 20}
        given = {"scorer": "perspective", "perspective_url": url, "execution": execution}
        scorer = build_scorer(Score.model_validate(given))
        # Concurrent calls share the rate limit.
        await asyncio.gather(*(scorer.score(texts[start::4], "en") for start in range(4)))
        await scorer.close()
        return scorer.provenance()

    with serving_in_process(faults) as (url, times):
        provenance = asyncio.run(main(url))
        seen = times()
    assert len(seen) == 80
    assert most_in_a_second(seen) <= 20
    assert provenance["num_retries"] == 10
    # All texts are ready at once, so the n-th request waits for about n / 20 seconds.
    assert 70 <= provenance["quota_wait_seconds"] <= 300


def test_slots_hold_what_slow_connections_bunch_together():
    """Requests that wait for their connection do not add to those that come after them."""
    from xgray.score.rate_limit import RateLimit

    written = []

    async def request(limit, delay):
        with await limit.acquire() as permit:
            await asyncio.sleep(delay)
            written.append(asyncio.get_running_loop().time())
            permit.release()

    async def main():
        limit = RateLimit(10)
        await asyncio.gather(*(request(limit, 0.4 if index < 4 else 0.0) for index in range(16)))

    asyncio.run(main())
    written.sort()
    assert len(written) == 16
    assert all(later - earlier >= 1 for earlier, later in zip(written, written[10:], strict=False))


@pytest.mark.parametrize(
    ("url", "version"),
    [
        ("https://commentanalyzer.googleapis.com", "perspective/v1alpha1"),
        ("http://127.0.0.1:8080/behind", "perspective/v1alpha1@127.0.0.1:8080"),
        ("https://scores.example", "perspective/v1alpha1@scores.example"),
    ],
)
def test_the_version_of_other_services_ends_with_their_address(tmp_path, url, version):
    section = Score.model_validate({"scorer": "perspective", "perspective_url": url})
    assert build_scorer(section).version == version
    execution = section.execution.model_copy(update={"store": str(tmp_path)})
    archived = section.model_copy(update={"archived": True, "execution": execution})
    with pytest.raises(InputError, match="no score store here"):
        build_scorer(archived)
    (key,) = score_keys(["a text"], "en", ScorerId("perspective", version))
    ScoreStore(str(tmp_path)).put([ScoreEntry(key, "en", "perspective", version, ("toxicity",), {"toxicity": 0.5})])
    assert build_scorer(archived).version == version


@pytest.mark.parametrize(
    ("archive", "version"),
    [
        (2020, "perspective/v1alpha1/2020"),
        ("unknown", "perspective/v1alpha1/unknown"),
        ("TOXICITY@6", "perspective/TOXICITY@6"),
    ],
)
def test_an_archive_answers_by_its_year_or_version(tmp_path, archive, version):
    store = ScoreStore(str(tmp_path))
    for found, value in ((version, 0.75), ("perspective/v1alpha1", 0.25)):
        scorer, scored = ScorerId("perspective", found), Scored({"toxicity": value})
        store.put([ScoreEntry.of_text("a text", "en", scorer, ["toxicity"], scored, "2020")])
    values = {"scorer": "perspective", "archived": archive, "execution": {"store": str(tmp_path)}}
    scorer = build_scorer(Score.model_validate(values))
    assert scorer.version == version
    assert [scored.scores for scored in asyncio.run(scorer.score(["a text", "another"], "en"))] == [
        {"toxicity": 0.75},
        None,
    ]


def test_an_archive_of_no_year_is_refused(tmp_path):
    values = {"scorer": "perspective", "archived": "last", "execution": {"store": str(tmp_path)}}
    ScoreStore(str(tmp_path)).put([])
    with pytest.raises(InputError, match="'last' names no archive"):
        build_scorer(Score.model_validate(values))


@pytest.mark.parametrize(
    ("settings", "variable", "message"),
    [
        ({}, None, "PERSPECTIVE_API_KEY"),
        ({}, "  ", "PERSPECTIVE_API_KEY"),
        ({}, "two\nlines", "PERSPECTIVE_API_KEY"),
        ({"attributes": ["toxicity", "rudeness"]}, KEY, "rudeness"),
        ({"attributes": []}, KEY, "score.attributes"),
    ],
)
def test_wrong_settings_are_refused_before_a_request_is_sent(monkeypatch, settings, variable, message):
    if variable is None:
        monkeypatch.delenv("PERSPECTIVE_API_KEY")
    else:
        monkeypatch.setenv("PERSPECTIVE_API_KEY", variable)
    with pytest.raises(InputError, match=message):
        build_scorer(Score.model_validate({"scorer": "perspective", **settings}))


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_seconds("soon") is None
    assert retry_after_seconds("inf") is None
    assert retry_after_seconds(None) is None
