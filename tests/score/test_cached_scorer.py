import asyncio
import hashlib
import signal
import sys

import pytest

from tests.faulty_service import KEY, FaultyService, running, true_score
from xgray.errors import StageError
from xgray.score.scorer import Scored, ScorerId, score_texts
from xgray.score.store.cached_scorer import CachedScorer
from xgray.score.store.store import ScoreStore


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def scorer_id(service):
    return ScorerId("perspective", f"perspective/v1alpha1@127.0.0.1:{service.port}")


def score_all(service, folder, texts, language="en", **settings):
    async def main():
        async with running(service, **settings) as inner:
            scorer = CachedScorer(inner, ScoreStore(str(folder)))
            return await scorer.score(texts, language), scorer.provenance()

    return asyncio.run(main())


def test_a_stored_text_is_not_sent_again(tmp_path):
    texts = [f"text {at}" for at in range(60)]
    service = FaultyService({"text 3": ["empty"], "text 4": ["500"], "text 5": ["200 with an error"]})
    first, provenance = score_all(service, tmp_path, texts)
    assert provenance["num_from_store"] == 0
    assert provenance["num_texts"] == 60
    assert len(service.received) == 61
    assert [index for index, result in enumerate(first) if result.error] == [3, 5]
    assert first[4].scores == {"toxicity": true_score("text 4")}

    again, provenance = score_all(service, tmp_path, [*texts[::-1], "new"])
    assert provenance["num_from_store"] == 59, "all but the temporary failure and the new text"
    assert sorted(request.text for request in service.received[61:]) == ["new", "text 5"]
    assert again[:54] == first[:5:-1]
    assert again[54].scores == {"toxicity": true_score("text 5")}
    assert again[55:60] == first[4::-1], "including the time that the service took"

    score_all(service, tmp_path, texts[:10], language="de")
    score_all(service, tmp_path, texts[:10], attributes=["toxicity", "insult"])
    assert sorted(request.text for request in service.received[73:]) == [*texts[:3], *texts[4:10]], (
        "the refusal still holds"
    )
    score_all(service, tmp_path, texts[:10], attributes=["insult"])
    assert [request.text for request in service.received[82:]] == ["text 3"], "it was not refused for insult"


def test_scores_of_one_service_are_not_used_for_another(tmp_path):
    texts, services = ["first", "second"], [FaultyService({}), FaultyService({})]
    for service in services * 2:
        score_all(service, tmp_path, texts)
    assert [len(service.received) for service in services] == [2, 2]


def test_concurrent_calls_share_a_request(tmp_path):
    service = FaultyService({"text 1": ["200 with an error"]})
    texts = [f"text {at}" for at in range(30)]

    async def main():
        async with running(service) as inner:
            scorer = CachedScorer(inner, ScoreStore(str(tmp_path)), slice_size=7, num_slices=2)
            calls = [scorer.score(texts[at : at + 20], "en") for at in (0, 5, 10, 0)]
            results = await asyncio.gather(*calls)
            return results, await score_texts(scorer, ["text 2", " ", "text 2"], "en", "corrected")

    results, later = asyncio.run(main())
    assert sorted(request.text for request in service.received) == sorted(texts)
    assert results[0] == results[3]
    assert results[0][5:] + results[2][10:15] == results[1]
    assert results[0][1].error
    assert [result.scores for result in results[2]] == [{"toxicity": true_score(text)} for text in texts[10:]]
    assert later[0] == later[2] == results[0][2]


def test_answers_before_a_failure_are_kept(tmp_path):
    texts = [f"text {at}" for at in range(40)]
    service = FaultyService({"text 30": ["403"]})
    with pytest.raises(StageError, match="check PERSPECTIVE_API_KEY"):
        score_all(service, tmp_path, texts, execution={"concurrency": 1})
    store = ScoreStore(str(tmp_path))
    kept = store.get(texts, "en", scorer_id(service), ["toxicity"])
    assert [result is not None for result in kept] == [True] * 30 + [False] * 10
    score_all(service, tmp_path, texts)
    assert len(service.received) == 41


def test_the_texts_of_a_cancelled_call_are_scored_by_another_call(tmp_path):
    service = FaultyService({"slow": ["timeout"]})

    async def main():
        async with running(service, execution={"timeout_seconds": 30.0}) as inner:
            scorer = CachedScorer(inner, ScoreStore(str(tmp_path)))
            first = asyncio.create_task(scorer.score(["quick", "slow"], "en"))
            while len(service.received) < 2:
                await asyncio.sleep(0.01)
            second = asyncio.create_task(scorer.score(["slow", "quick"], "en"))
            await asyncio.sleep(0.3)
            first.cancel()
            return await second

    results = asyncio.run(main())
    assert [result.scores for result in results] == [{"toxicity": true_score(text)} for text in ("slow", "quick")]
    assert sorted(request.text for request in service.received) == ["quick", "slow", "slow"]


class LocalScorer:
    """A scorer without a service that records the sizes of its calls."""

    name = "hash"
    version = "1"
    device = "cpu"
    attributes = ("toxicity",)
    validated = ("en", "de")

    def __init__(self):
        self.calls = []
        self.closed = False

    async def score(self, texts, language):
        self.calls.append(len(texts))
        await asyncio.sleep(0.01)
        return [Scored({"toxicity": hashlib.sha256(text.encode()).digest()[0] / 255}) for text in texts]

    def provenance(self):
        return {"scorer": self.name}

    async def close(self):
        self.closed = True


def test_a_local_scorer_receives_large_slices(tmp_path):
    inner = LocalScorer()
    scorer = CachedScorer(inner, ScoreStore(str(tmp_path)), slice_size=1000, num_slices=2)
    texts = [f"text {at}" for at in range(2500)]
    results = asyncio.run(scorer.score(texts, "en"))
    assert inner.calls == [1000, 1000, 500]
    assert [result.scores for result in results] == [result.scores for result in asyncio.run(inner.score(texts, "en"))]
    assert (scorer.name, scorer.version, scorer.device) == ("hash", "1", "cpu")
    assert (scorer.attributes, scorer.validated) == (("toxicity",), ("en", "de"))
    asyncio.run(scorer.close())
    assert inner.closed


SLOW_RUN = """
import asyncio, sys
from xgray.config import Score
from xgray.score.build import build_scorer
from xgray.score.store.store import ScoreStore
from xgray.score.store.cached_scorer import CachedScorer

async def main():
    execution = {"requests_per_second": 60}
    section = Score.model_validate({"scorer": "perspective", "perspective_url": sys.argv[1], "execution": execution})
    scorer = CachedScorer(build_scorer(section), ScoreStore(sys.argv[2]))
    await scorer.score([f"text {at}" for at in range(2000)], "en")

asyncio.run(main())
"""


def test_a_killed_run_loses_at_most_a_second_of_answers(tmp_path):
    """Meanwhile one text is tried again and again, which must not delay the commit of the others."""
    service = FaultyService({"text 0": ["500"] * 9})

    async def main():
        async with running(service):
            url = f"http://127.0.0.1:{service.port}"
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", SLOW_RUN, url, str(tmp_path))
            while len(service.received) < 240:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            return len({request.text for request in service.received})

    num_paid = asyncio.run(main())
    texts = [f"text {at}" for at in range(2000)]
    store = ScoreStore(str(tmp_path))
    num_kept = sum(map(bool, store.get(texts, "en", scorer_id(service), ["toxicity"])))
    assert num_paid - 70 <= num_kept < num_paid
