"""The local scorer behind HTTP against the same scorer in a plain batched loop: texts a second; then latencies.

    python benchmarks/serve.py [--texts 680] [--rounds 3] [--connections 64] [--seconds 20] [--port 8780]

The embedded labelled texts of all languages. The loop runs alone, on all cores, in whole batches; then the service
starts, and a load generator in a process of its own, on the same cores, keeps that many connections busy with one text
each. Rounds alternate; the table shows the medians, and beside the rates the time of a core that a text costs, which
other work on the machine changes less: of the loop, and of all processes of the service and the load generator. Then
requests arrive at random at half of the capacity that was measured, and their latency counts from when they were due.
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
from typing import Any

import numpy as np
import psutil

from xgray.config import Score, Serve

Text = tuple[str, str]
"""Its language and itself."""


def sample(num_texts: int) -> list[Text]:
    from xgray.data.labelled import read_labelled

    texts = sorted({(one.language, one.text) for one in read_labelled("embedded")})
    return random.Random(0).sample(texts, min(num_texts, len(texts)))


async def loop(texts: list[Text], batch_size: int) -> tuple[float, float, dict[Text, float]]:
    """Seconds, those of a core, and the scores."""
    from xgray.score.build import build_scorer
    from xgray.score.scorer import score_texts

    scorer = build_scorer(Score())
    await scorer.score(["warm up"], "en")
    scores: dict[Text, float] = {}
    began, busy = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        # The scorer is one for all languages, so that batches need not be cut short by them.
        results = await score_texts(scorer, [text for _, text in batch], "en", "corrected")
        for one, result in zip(batch, results, strict=True):
            assert result.scores
            assert result.scores["toxicity"] is not None
            scores[one] = result.scores["toxicity"]
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    await scorer.close()
    return seconds, busy, scores


def run_loop(texts: list[Text], batch_size: int) -> tuple[float, float, dict[Text, float]]:
    return asyncio.run(loop(texts, batch_size))


async def ask(session: Any, one: Text) -> float:
    language, text = one
    body = {"comment": {"text": text}, "languages": [language], "requestedAttributes": {"TOXICITY": {}}}
    async with session.post("/v1alpha1/comments:analyze", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    value: float = answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    return value


async def closed(url: str, texts: list[Text], connections: int) -> tuple[float, float, dict[Text, float]]:
    """Each connection sends its next text when it has the last one's score."""
    import aiohttp

    rest = iter(texts)
    scores: dict[Text, float] = {}

    async def connection() -> None:
        for one in rest:
            scores[one] = await ask(session, one)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        began, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*(connection() for _ in range(connections)))
        return time.perf_counter() - began, time.process_time() - busy, scores


def run_closed(url: str, texts: list[Text], connections: int) -> tuple[float, float, dict[Text, float]]:
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


def core_seconds(process: psutil.Process) -> float:
    """Spent so far by the process and all below it."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


@contextmanager
def service(section: Serve) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a service that runs for the length of the block."""
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
    yield url, psutil.Process(process.pid)
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
    rows, latencies = [], []
    for _ in range(options.rounds):
        seconds, busy, expected = elsewhere(run_loop, texts, section.batch_size)
        row = [len(texts) / seconds, busy / len(texts) * 1000]
        with service(section) as (url, process):
            elsewhere(run_closed, url, texts[: options.connections], options.connections)
            before = core_seconds(process)
            seconds, busy, scores = elsewhere(run_closed, url, texts, options.connections)
            busy += core_seconds(process) - before
            assert scores == expected, "the service has other scores"
            row += [len(texts) / seconds, busy / len(texts) * 1000]
            latencies += elsewhere(run_opened, url, texts, row[2] / 2, options.seconds / options.rounds)
        rows.append([*row, row[2] / row[0], row[1] / row[3]])
        print("loop {:.1f}/s {:.1f} ms, served {:.1f}/s {:.1f} ms, {:.2f} {:.2f}".format(*rows[-1]), flush=True)
    rate, cost, served_rate, served_cost, ratio, cost_ratio = map(statistics.median, zip(*rows, strict=True))
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1000
    print(f"\n{len(texts)} texts, {options.connections} connections; medians of {options.rounds} rounds; equal scores")
    print(f"{'':22}{'loop':>10}{'served':>10}{'ratio':>10}")
    print(f"{'texts a second':22}{rate:>10.1f}{served_rate:>10.1f}{ratio:>10.2f}")
    print(f"{'ms of a core a text':22}{cost:>10.1f}{served_cost:>10.1f}{cost_ratio:>10.2f}")
    print(f"at half load, {len(latencies)} requests: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
