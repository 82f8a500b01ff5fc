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


def test_the_language_with_the_fewest_archived_prompts_comes_next_and_texts_are_requested_once():
    prompts = order_prompts(
        texts_by_prompt("run", ROWS, "corrected"), lambda texts, _: [text in "ab" for text in texts]
    )
    assert {prompt.prompt_id: prompt.texts for prompt in prompts} == {
        "en/0": ("c",),
        "de/0": ("h",),
        "en/2": ("d", "e"),
        "en/1": ("d", "e", "f", "g"),
    }
    assert [prompt.language for prompt in prompts] == ["en", "de", "en", "en"]
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    prompts = [by_id[prompt_id] for prompt_id in ("en/0", "de/0", "en/2", "en/1")]
    estimate = estimate_archive(prompts, 2.0, CLOSES - timedelta(seconds=2))
    assert estimate.num_texts == {"en": 5, "de": 1}
    assert estimate.num_prompts == {"en": 3, "de": 1}
    assert estimate.seconds == 3.0
    assert estimate.in_time == {"en": 2, "de": 1}, "four requests are left: c, h, d and e"


def many(language, num):
    return {("run", language, f"{language}/{index}"): [f"{language} {index}"] for index in range(num)}


def numbers(prompts):
    return [int(prompt.prompt_id.partition("/")[2]) for prompt in prompts]


def test_the_order_within_a_language_is_random_the_same_in_all_languages_and_each_time():
    prompts = many("en", 1000) | many("de", 1000)
    ordered = order_prompts(prompts, lambda texts, _: [False] * len(texts))
    first = numbers(ordered[:400])
    assert first[::2] == first[1::2], "translations are archived together"
    assert abs(sum(first) / 400 - 499.5) < 4 * 288.7 / 200**0.5, "a mean as of a random sample of 200"
    done = {prompt.texts[0] for prompt in ordered[:400]}
    again = order_prompts(prompts, lambda texts, _: [text in done for text in texts])
    assert again == ordered[400:]


def test_languages_that_are_behind_catch_up_and_those_that_are_named_come_first():
    prompts = many("en", 10) | many("hi", 10) | many("ko", 10)
    known = {f"en {index}" for index in range(6)} | {f"ko {index}" for index in range(2)}

    def order(first=()):
        ordered = order_prompts(prompts, lambda texts, _: [text in known for text in texts], first)
        return " ".join(prompt.language for prompt in ordered)

    assert order() == " ".join(["hi", "hi", *["hi", "ko"] * 4, *["en", "hi", "ko"] * 4])
    assert order(["ko"]) == " ".join(["ko"] * 8 + ["hi"] * 6 + ["en", "hi"] * 4)


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
    expected = [text for prompt in prompts for text in prompt.texts]
    assert [set(prompt.texts) for prompt in prompts[:1]] == [set(texts[: len(prompts[0].texts)])]
    assert sorted(texts) == sorted(expected)
    assert prompts[1].language == "de"


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
