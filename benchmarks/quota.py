"""How much of its rate limit the Perspective client uses, and whether it ever exceeds it.

    python benchmarks/quota.py [--requests 600] [--per-second 50] [--repeats 1]

A server in another process answers after a fixed latency, fails 5 % of the requests (429 and 503 in turn) and records
the time of each request. The clients are one or four Ray actors with the same key; for comparison, a client that sends
one request after the other, and Ray Data's HTTP stage at the same rate. ``used`` is the rate of the requests that the
server received, divided by the rate limit, and ``goodput`` the rate of those that it answered with a score: with 5 %
failures at most .95 of ``used``. Both are measured while there are new texts to send. ``most in 1 s`` is the largest
number of requests in any second, by the server's clock when it reads them. The server reads requests that arrive while
it pauses all at once; ``pause`` is its longest pause.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from xgray.config import Score

FAILURE_INTERVAL = 20
"""Every so many requests, the server fails one."""

ONE_BY_ONE = "one by one"
RAY_DATA = "Ray Data's HTTP stage"


def serve(pipe: Connection, latency: float) -> None:
    """Run the service. It sends its port and, after any message, the time, text and status of each request."""
    from aiohttp import web

    requests: list[tuple[float, str, int]] = []
    pauses = [0.0]

    async def record_pauses() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic() - began - 0.005)

    async def analyze(request: web.Request) -> web.Response:
        body = await request.json()
        index = len(requests)
        is_failure = index % FAILURE_INTERVAL == FAILURE_INTERVAL - 1
        status = (429, 503)[index // FAILURE_INTERVAL % 2] if is_failure else 200
        requests.append((time.monotonic(), body["comment"]["text"], status))
        await asyncio.sleep(latency)
        scores = {name: {"summaryScore": {"value": 0.5}} for name in body["requestedAttributes"]}
        return web.json_response({"attributeScores": scores} if status == 200 else {}, status=status)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1alpha1/comments:analyze", analyze)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        watching = asyncio.create_task(record_pauses())
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        watching.cancel()
        pipe.send((requests, max(pauses)))

    asyncio.run(run())


def make_texts(num_texts: int) -> list[str]:
    return [f"text {index}" for index in range(num_texts)]


def send_with_actors(url: str, num_texts: int, per_second: float, num_workers: int) -> None:
    """Score the texts with Ray actors that share a rate limit."""
    import ray

    from xgray.distributed.rate_limit import shared_rate_limit
    from xgray.score.build import build_scorer

    section = Score.model_validate(
        {"scorer": "perspective", "perspective_url": url, "execution": {"requests_per_second": per_second}}
    )

    class Worker:
        def __init__(self) -> None:
            self._scorer = build_scorer(section, shared_rate_limit(section))

        async def score(self, texts: list[str]) -> int:
            results = await self._scorer.score(texts, "en") if texts else []
            return sum(result.scores is not None for result in results)

    actor = ray.remote(num_cpus=0)(Worker)
    workers = [actor.remote() for _ in range(num_workers)]
    ray.get([worker.score.remote([]) for worker in workers])  # The start of actors would slow the measurement.
    texts = make_texts(num_texts)
    counts = ray.get([worker.score.remote(texts[start::num_workers]) for start, worker in enumerate(workers)])
    assert sum(counts) == num_texts


def send_one_by_one(url: str, num_texts: int) -> None:
    """Send one request after the other, up to eight times per text."""
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for text in make_texts(num_texts):
                body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}}
                for _ in range(8):
                    async with session.post(f"{url}/v1alpha1/comments:analyze", json=body) as response:
                        if response.status == 200:
                            break

    asyncio.run(run())


def send_with_ray_data(url: str, num_texts: int, per_second: float) -> None:
    """Send the requests with Ray Data's HTTP stage."""
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    config = HttpRequestProcessorConfig(
        url=f"{url}/v1alpha1/comments:analyze",
        qps=per_second,
        max_retries=8,
        base_retry_wait_time_in_s=0.5,
        batch_size=64,
        concurrency=1,
    )
    stage = build_processor(
        config,
        preprocess=lambda row: {"payload": {"comment": {"text": row["item"]}, "requestedAttributes": {"TOXICITY": {}}}},
        postprocess=lambda row: {"answer": str(row["http_response"])},
    )
    stage(ray.data.from_items(make_texts(num_texts))).take_all()


def measure(client: str, latency: float, num_texts: int, per_second: float) -> dict[str, float]:
    """Run a client against a new server and return what the server saw."""
    pipe, servers_pipe = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(servers_pipe, latency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{pipe.recv()}"
    if client == ONE_BY_ONE:
        send_one_by_one(url, num_texts)
    elif client == RAY_DATA:
        send_with_ray_data(url, num_texts, per_second)
    else:
        send_with_actors(url, num_texts, per_second, int(client.split()[0]))
    pipe.send("done")
    requests: list[tuple[float, str, int]]
    requests, pause = pipe.recv()
    server.join()
    first_times: dict[str, float] = {}
    for seconds, text, _ in requests:
        first_times.setdefault(text, seconds)
    begin, end = min(first_times.values()), max(first_times.values())
    within = [status for seconds, _, status in requests if begin <= seconds < end]
    times = sorted(seconds for seconds, _, _ in requests)
    return {
        "used": len(within) / (end - begin) / per_second,
        "goodput": within.count(200) / (end - begin) / per_second,
        "most": max(sum(1 for other in times[index:] if other < first + 1) for index, first in enumerate(times)),
        "requests": len(requests),
        "pause": pause,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--per-second", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    os.environ["PERSPECTIVE_API_KEY"] = "benchmark"
    os.environ["NO_PROXY"] = "127.0.0.1"
    from xgray.distributed.cluster import connect

    runs: list[tuple[str, float, int]] = []
    for milliseconds in (10, 100, 500):
        latency = milliseconds / 1000
        runs += [(f"{number} worker{'s' * (number > 1)}", latency, options.requests) for number in (1, 4)]
        # These wait for every request, so they get fewer texts.
        runs += [(client, latency, options.requests // 10) for client in (ONE_BY_ONE, RAY_DATA)]
    print(
        f"{'latency':>8}  {'client':<22}{'used':>8}{'goodput':>9}{'most in 1 s':>13}{'pause':>9}{'requests':>10}",
        flush=True,
    )
    num_exceeded = 0
    with connect():
        for client, latency, num_texts in runs:
            results: list[dict[str, Any]] = [
                measure(client, latency, num_texts, options.per_second) for _ in range(options.repeats)
            ]
            used, goodput = (statistics.median(result[name] for result in results) for name in ("used", "goodput"))
            most = max(result["most"] for result in results)
            num_exceeded += "worker" in client and most > options.per_second
            print(
                f"{latency * 1000:>5.0f} ms  {client:<22}{used:>8.3f}{goodput:>9.3f}{most:>13.0f}"
                f"{max(result['pause'] for result in results) * 1000:>6.0f} ms{results[0]['requests']:>10.0f}",
                flush=True,
            )
    print(
        f"runs with workers that exceeded the limit of {options.per_second:g} requests per second: {num_exceeded:.0f}"
    )


if __name__ == "__main__":
    main()
