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


def test_prompts_alternate_between_languages_and_those_with_few_unscored_texts_come_first():
    prompts = order_prompts(
        texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [text in "ab" for text in texts]
    )
    assert [(prompt.prompt_id, prompt.texts) for prompt in prompts] == [
        ("en/0", ("c",)),
        ("de/0", ("h",)),
        ("en/2", ("d", "e")),
        ("en/1", ("d", "e", "f", "g")),
    ]
    estimate = estimate_archive(prompts, 2.0, CLOSES - timedelta(seconds=2))
    assert estimate.num_texts == {"en": 5, "de": 1}
    assert estimate.num_prompts == {"en": 3, "de": 1}
    assert estimate.seconds == 3.0
    assert estimate.in_time == {"en": 2, "de": 1}, "four requests are left: c, h, d and e"


def test_no_prompt_is_in_time_after_the_service_has_closed():
    prompts = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))
    assert set(estimate_archive(prompts, 50.0, CLOSES + timedelta(days=1)).in_time.values()) == {0}


def test_prompts_whose_texts_are_all_scored_are_left_out():
    assert order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [True] * len(texts)) == []
    released = texts_by_prompt("run", ROWS[:1], "released")
    assert released["run", "en", "en/0"] == ["a", "b", " "]


def test_prompts_are_scored_in_order_and_missing_scores_are_returned(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service, progress = FaultyService({"h": ["empty"]}), []
    prompts = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            return await score_prompts(scorer, prompts, 1, lambda *done: progress.append(done))

    (missing,) = asyncio.run(main())
    assert "COMMENT_EMPTY" in missing.error
    assert missing.error != EMPTY_TEXT
    assert progress == [(index, 4) for index in range(1, 5)]
    texts = [request.text for request in service.received]
    assert set(texts[:2]) == {"d", "e"}
    assert {request.body["languages"][0] for request in service.received[2:4]} == {"de"}


@pytest.mark.parametrize(("tries", "num_missing"), [(["empty"], 0), (["empty", "empty"], 1)])
def test_a_text_in_two_prompts_is_missing_once_and_only_if_both_tries_failed(monkeypatch, tries, num_missing):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = FaultyService({"d": tries})
    prompts = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            return await score_prompts(scorer, prompts, 1, lambda *_: None)

    assert len(asyncio.run(main())) == num_missing
    assert len(service.tries("d")) == 2, "the text is in two prompts"


def test_a_refused_key_stops_the_archive(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = FaultyService({"d": ["403"]})
    prompts = order_prompts(texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [False] * len(texts))

    async def main():
        async with running(service) as scorer:
            await score_prompts(scorer, prompts, 2, lambda *_: None)

    with pytest.raises(StageError, match="PERSPECTIVE_API_KEY"):
        asyncio.run(main())
