"""Throughput of the local scorer behind HTTP and in a plain batched loop, and the latency of the service.

    python benchmarks/serve.py [--texts 680] [--rounds 3] [--connections 64] [--seconds 20] [--port 8780]

The texts are the embedded labelled texts of all languages. First the loop runs alone, on all cores, in full batches.
Then the service starts, and a load generator in another process, on the same cores, keeps ``--connections`` busy with
one text each. Rounds alternate, and the table shows medians. Besides rates it shows the time of a core per text, which
other work on the machine changes less: that of the loop, and that of the service and the load generator together. Last,
requests arrive at random times at half of the measured capacity, and their latency counts from when they were due.
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
"""A language and a text."""


def sample_texts(num_texts: int) -> list[Text]:
    from xgray.data.labelled import read_labelled

    texts = sorted({(row.language, row.text) for row in read_labelled("embedded")})
    return random.Random(0).sample(texts, min(num_texts, len(texts)))


async def loop(texts: list[Text], batch_size: int) -> tuple[float, float, dict[Text, float]]:
    """Score in a loop; return the seconds, the seconds of a core, and the scores."""
    from xgray.score.build import build_scorer
    from xgray.score.scorer import score_texts

    scorer = build_scorer(Score())
    await scorer.score(["warm up"], "en")
    scores: dict[Text, float] = {}
    began, busy = time.perf_counter(), time.process_time()
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        # The scorer is the same for all languages, so a batch may mix them.
        results = await score_texts(scorer, [content for _, content in batch], "en", "corrected")
        for text, result in zip(batch, results, strict=True):
            assert result.scores
            assert result.scores["toxicity"] is not None
            scores[text] = result.scores["toxicity"]
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    await scorer.close()
    return seconds, busy, scores


def run_loop(texts: list[Text], batch_size: int) -> tuple[float, float, dict[Text, float]]:
    return asyncio.run(loop(texts, batch_size))


async def request_score(session: Any, text: Text) -> float:
    language, content = text
    body = {"comment": {"text": content}, "languages": [language], "requestedAttributes": {"TOXICITY": {}}}
    async with session.post("/v1alpha1/comments:analyze", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
    value: float = answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    return value


async def keep_busy(url: str, texts: list[Text], connections: int) -> tuple[float, float, dict[Text, float]]:
    """Send texts on all connections, the next when the last is scored; return what :func:`loop` does."""
    import aiohttp

    rest = iter(texts)
    scores: dict[Text, float] = {}

    async def connection() -> None:
        for text in rest:
            scores[text] = await request_score(session, text)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        began, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*(connection() for _ in range(connections)))
        return time.perf_counter() - began, time.process_time() - busy, scores


def run_keep_busy(url: str, texts: list[Text], connections: int) -> tuple[float, float, dict[Text, float]]:
    return asyncio.run(keep_busy(url, texts, connections))


async def send_at_random(url: str, texts: list[Text], per_second: float, seconds: float) -> list[float]:
    """Send requests at the times of a Poisson process, answered or not, and return their latencies."""
    import aiohttp

    rng = random.Random(1)
    latencies: list[float] = []

    async def send(due: float, text: Text) -> None:
        await asyncio.sleep(due - time.perf_counter())
        await request_score(session, text)
        latencies.append(time.perf_counter() - due)

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        due = time.perf_counter()
        end = due + seconds
        tasks = []
        while (due := due + rng.expovariate(per_second)) < end:
            tasks.append(asyncio.create_task(send(due, rng.choice(texts))))
        await asyncio.gather(*tasks)
    return latencies


def run_send_at_random(url: str, texts: list[Text], per_second: float, seconds: float) -> list[float]:
    return asyncio.run(send_at_random(url, texts, per_second, seconds))


def run_in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function, run in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def core_seconds(process: psutil.Process) -> float:
    """Return the time that a process and its descendants have used so far."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(time_used.user + time_used.system for time_used in times)


@contextmanager
def service(section: Serve) -> Iterator[tuple[str, psutil.Process]]:
    """Run a service for the duration of the block and yield its address and process."""
    from xgray.distributed.serve import run_service

    process = multiprocessing.get_context("spawn").Process(target=run_service, args=({"embedding": Score()}, section))
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
    texts = sample_texts(options.texts)
    rows, latencies = [], []
    for _ in range(options.rounds):
        seconds, busy, expected = run_in_process(run_loop, texts, section.batch_size)
        row = [len(texts) / seconds, busy / len(texts) * 1000]
        with service(section) as (url, process):
            run_in_process(run_keep_busy, url, texts[: options.connections], options.connections)
            before = core_seconds(process)
            seconds, busy, scores = run_in_process(run_keep_busy, url, texts, options.connections)
            busy += core_seconds(process) - before
            assert scores == expected, "the service has other scores"
            row += [len(texts) / seconds, busy / len(texts) * 1000]
            latencies += run_in_process(run_send_at_random, url, texts, row[2] / 2, options.seconds / options.rounds)
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
