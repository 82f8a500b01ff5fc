import asyncio
from datetime import timedelta

import pytest

from tests.faulty_service import KEY, FaultyService, running
from xgray.errors import StageError
from xgray.rows import EMPTY_TEXT, Completions
from xgray.score.archive import CLOSES, estimate_archive, order_prompts, score_prompts, texts_by_prompt


def completions(language, index, model, *texts):
    return Completions(f"{language}/{index}", language, model, "so", list(texts), [], ["stop"] * len(texts))


ROWS = [
    completions("en", 0, "base", "a", "b", "a", ""),
    completions("en", 0, "dpo", "b", "c"),
    completions("en", 1, "base", "d", "e"),
    completions("en", 1, "dpo", "f", "g"),
    completions("en", 2, "base", "d", "e"),
    completions("de", 0, "base", "a", "h"),
]


def test_every_language_gets_its_cheapest_prompts_first():
    units = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [text in "ab" for text in texts])
    assert [(unit.prompt_id, unit.texts) for unit in units] == [
        ("en/0", ("c",)),
        ("de/0", ("h",)),
        ("en/2", ("d", "e")),
        ("en/1", ("d", "e", "f", "g")),
    ]
    told = estimate_archive(units, 2.0, CLOSES - timedelta(seconds=2))
    assert told.num_texts == {"en": 5, "de": 1}
    assert told.num_prompts == {"en": 3, "de": 1}
    assert told.seconds == 3.0
    assert told.in_time == {"en": 2, "de": 1}, "four requests are left: c, h, d and e"


def test_nothing_is_in_time_once_the_service_is_closed():
    units = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))
    assert set(estimate_archive(units, 50.0, CLOSES + timedelta(days=1)).in_time.values()) == {0}


def test_what_has_a_score_is_no_unit():
    assert order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [True] * len(texts)) == []
    released = texts_by_prompt("run", ROWS[:1], "released")
    assert released["run", "en", "en/0"] == ["a", "b", " "]


def test_units_are_scored_in_their_order_and_failures_are_said(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service, done = FaultyService({"h": ["empty"]}), []
    units = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            return await score_prompts(scorer, units, 1, lambda *progress: done.append(progress))

    (missing,) = asyncio.run(main())
    assert "COMMENT_EMPTY" in missing.error
    assert missing.error != EMPTY_TEXT
    assert done == [(index, 4) for index in range(1, 5)]
    firsts = [one.text for one in service.received]
    assert set(firsts[:2]) == {"d", "e"}
    assert {one.body["languages"][0] for one in service.received[2:4]} == {"de"}


@pytest.mark.parametrize(("tries", "num_missing"), [(["empty"], 0), (["empty", "empty"], 1)])
def test_a_text_of_several_prompts_is_missing_once_and_not_when_it_has_a_score_at_last(monkeypatch, tries, num_missing):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = FaultyService({"d": tries})
    units = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            return await score_prompts(scorer, units, 1, lambda *_: None)

    assert len(asyncio.run(main())) == num_missing
    assert len(service.tries("d")) == 2, "in two prompts"


def test_a_refused_key_stops_it(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = FaultyService({"d": ["403"]})
    units = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            await score_prompts(scorer, units, 2, lambda *_: None)

    with pytest.raises(StageError, match="PERSPECTIVE_API_KEY"):
        asyncio.run(main())
