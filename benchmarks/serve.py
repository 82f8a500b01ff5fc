"""The local scorer behind HTTP against the same scorer in a plain batched loop: texts a second; then latencies.

    python benchmarks/serve.py [--texts 680] [--rounds 3] [--connections 64] [--seconds 20] [--port 8780]

The embedded labelled texts of all languages. The loop runs alone, on all cores, in whole batches of one language; then
the service starts, and a load generator in a process of its own, on the same cores, keeps that many connections busy
with one text each. Rounds alternate; the table shows the medians. Then requests arrive at random at half of the
capacity that was measured, and their latency counts from when they were due.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np

from xgray.config import Score, Serve

Text = tuple[str, str]
"""Its language and itself."""


def sample(num_texts: int) -> list[Text]:
    from xgray.data.labelled import read_labelled

    texts = sorted({(one.language, one.text) for one in read_labelled("embedded")})
    return random.Random(0).sample(texts, min(num_texts, len(texts)))


async def loop(texts: list[Text], batch_size: int) -> tuple[float, dict[Text, float]]:
    """Seconds, and the scores."""
    from xgray.score.build import build_scorer
    from xgray.score.scorer import score_texts

    scorer = build_scorer(Score())
    await scorer.score(["warm up"], "en")
    scores: dict[Text, float] = {}
    began = time.perf_counter()
    for language, group in groupby(sorted(texts), key=lambda one: one[0]):
        own = list(group)
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            results = await score_texts(scorer, [text for _, text in batch], language, "corrected")
            for one, result in zip(batch, results, strict=True):
                assert result.scores
                assert result.scores["toxicity"] is not None
                scores[one] = result.scores["toxicity"]
    seconds = time.perf_counter() - began
    await scorer.close()
    return seconds, scores


def run_loop(texts: list[Text], batch_size: int) -> tuple[float, dict[Text, float]]:
    return asyncio.run(loop(texts, batch_size))


async def ask(session: Any, one: Text) -> float:
    language, text = one
    body = {"comment": {"text": text}, "languages": [language], "requestedAttributes": {"TOXICITY": {}}}
    async with session.post("/v1alpha1/comments:analyze", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    value: float = answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    return value


async def closed(url: str, texts: list[Text], connections: int) -> tuple[float, dict[Text, float]]:
    """Each connection sends its next text when it has the last one's score."""
    import aiohttp

    rest = iter(texts)
    scores: dict[Text, float] = {}

    async def connection() -> None:
        for one in rest:
            scores[one] = await ask(session, one)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(connection() for _ in range(connections)))
        return time.perf_counter() - began, scores


def run_closed(url: str, texts: list[Text], connections: int) -> tuple[float, dict[Text, float]]:
    return asyncio.run(closed(url, texts, connections))


async def opened(url: str, texts: list[Text], per_second: float, seconds: float) -> list[float]:
    """Latencies of requests that arrive whether or not others are answered (Poisson)."""
    import aiohttp

    draw = random.Random(1)
    latencies: list[float] = []

    async def request(due: float, one: Text) -> None:
        await asyncio.sleep(due - time.perf_counter())
        await ask(session, one)
        latencies.append(time.perf_counter() - due)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        due = time.perf_counter()
        end = due + seconds
        tasks = []
        while (due := due + draw.expovariate(per_second)) < end:
            tasks.append(asyncio.create_task(request(due, draw.choice(texts))))
        await asyncio.gather(*tasks)
    return latencies


def run_opened(url: str, texts: list[Text], per_second: float, seconds: float) -> list[float]:
    return asyncio.run(opened(url, texts, per_second, seconds))


def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, from a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def service(section: Serve) -> Iterator[str]:
    """The address of a service that runs for the length of the block."""
    from xgray.distributed.serve import run_service

    process = multiprocessing.get_context("spawn").Process(target=run_service, args=(Score(), section))
    process.start()
    url = f"http://{section.host}:{section.port}"
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz").close()
            break
        except urllib.error.URLError:
            assert process.is_alive()
            time.sleep(0.2)
    yield url
    process.terminate()
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=680)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of requests at half of the capacity")
    parser.add_argument("--port", type=int, default=8780)
    options = parser.parse_args()
    section = Serve(port=options.port)
    texts = sample(options.texts)
    plain, served, latencies = [], [], []
    for _ in range(options.rounds):
        seconds, expected = elsewhere(run_loop, texts, section.batch_size)
        plain.append(len(texts) / seconds)
        with service(section) as url:
            elsewhere(run_closed, url, texts[: options.connections], options.connections)
            seconds, scores = elsewhere(run_closed, url, texts, options.connections)
            assert scores == expected, "the service has other scores"
            served.append(len(texts) / seconds)
            latencies += elsewhere(run_opened, url, texts, served[-1] / 2, options.seconds / options.rounds)
        print(f"loop {plain[-1]:.1f}, served {served[-1]:.1f} texts/s, ratio {served[-1] / plain[-1]:.2f}", flush=True)
    ratio = statistics.median(one / other for one, other in zip(served, plain, strict=True))
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    print(f"\n{len(texts)} texts, {options.connections} connections; medians of {options.rounds} rounds; equal scores")
    print(f"{'loop, texts/s':>16}{'served, texts/s':>18}{'ratio':>8}{'p50 at half load':>20}{'p99 at half load':>20}")
    rates = f"{statistics.median(plain):>16.1f}{statistics.median(served):>18.1f}{ratio:>8.2f}"
    print(f"{rates}{p50:>17.0f} ms{p99:>17.0f} ms   ({len(latencies)} requests)")


if __name__ == "__main__":
    main()
