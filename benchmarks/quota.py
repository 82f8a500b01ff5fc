"""The Perspective client at its quota: how much of it is used, and whether it is ever passed.

    python benchmarks/quota.py [--requests 600] [--per-second 50] [--repeats 1]

A server in a process of its own answers after a fixed time, fails 5 % of the requests (429 and 503 in turn) and keeps
the time of each that it sees. Clients are one or four Ray actors with the same key; beside them a client that sends one
request after the other, and Ray Data's own HTTP stage at the same rate. ``used`` is the requests that the server saw a
second, over the quota, and ``goodput`` those that it answered with a score: at 5 % failures, at most .95 of what is
used. Both are taken while there are new texts to send. ``most`` is the largest number of requests in any second, by the
server's clock when it reads them; a pause of the server, whose longest stands beside it, bunches what it then reads.
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

FAULTS = 20
"""One request of so many fails."""


def serve(pipe: Connection, latency: float) -> None:
    """The service; says its port, then after any message what it saw: time, text and status of each request."""
    from aiohttp import web

    seen: list[tuple[float, str, int]] = []
    pauses = [0.0]

    async def watch() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic() - began - 0.005)

    async def analyze(request: web.Request) -> web.Response:
        body = await request.json()
        number = len(seen)
        status = (429, 503)[number // FAULTS % 2] if number % FAULTS == FAULTS - 1 else 200
        seen.append((time.monotonic(), body["comment"]["text"], status))
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
        watching = asyncio.create_task(watch())
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        watching.cancel()
        pipe.send((seen, max(pauses)))

    asyncio.run(run())


def texts(number: int) -> list[str]:
    return [f"text {index}" for index in range(number)]


def through_actors(url: str, number: int, per_second: float, num_workers: int) -> None:
    import ray

    from xgray.distributed.rate_limit import shared_rate_limit
    from xgray.score.build import build_scorer

    section = Score.model_validate(
        {"scorer": "perspective", "perspective_url": url, "execution": {"requests_per_second": per_second}}
    )

    class Worker:
        def __init__(self) -> None:
            self._scorer = build_scorer(section, shared_rate_limit(section))

        async def run(self, own: list[str]) -> int:
            scored = await self._scorer.score(own, "en") if own else []
            return sum(one.scores is not None for one in scored)

    make = ray.remote(num_cpus=0)(Worker)
    workers = [make.remote() for _ in range(num_workers)]
    ray.get([worker.run.remote([]) for worker in workers])  # what starts takes the cores from what is measured
    given = texts(number)
    counts = ray.get([worker.run.remote(given[start::num_workers]) for start, worker in enumerate(workers)])
    assert sum(counts) == number


def one_by_one(url: str, number: int) -> None:
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for text in texts(number):
                body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}}}
                for _ in range(8):
                    async with session.post(f"{url}/v1alpha1/comments:analyze", json=body) as response:
                        if response.status == 200:
                            break

    asyncio.run(run())


def ray_data(url: str, number: int, per_second: float) -> None:
    import ray
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.DataContext.get_current().print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    config = HttpRequestProcessorConfig(
        url=f"{url}/v1alpha1/comments:analyze", qps=per_second, max_retries=8, base_retry_wait_time_in_s=0.5,
        batch_size=64, concurrency=1,
    )  # fmt: skip
    stage = build_processor(
        config,
        preprocess=lambda row: {"payload": {"comment": {"text": row["item"]}, "requestedAttributes": {"TOXICITY": {}}}},
        postprocess=lambda row: {"answer": str(row["http_response"])},
    )
    stage(ray.data.from_items(texts(number))).take_all()


def measure(kind: str, latency: float, number: int, per_second: float) -> dict[str, float]:
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there, latency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    if kind == "one by one":
        one_by_one(url, number)
    elif kind == "Ray Data's HTTP stage":
        ray_data(url, number, per_second)
    else:
        through_actors(url, number, per_second, int(kind.split()[0]))
    here.send("done")
    seen: list[tuple[float, str, int]]
    seen, pause = here.recv()
    server.join()
    first: dict[str, float] = {}
    for at, text, _ in seen:
        first.setdefault(text, at)
    begin, end = min(first.values()), max(first.values())
    within = [status for at, _, status in seen if begin <= at < end]
    times = sorted(at for at, _, _ in seen)
    return {
        "used": len(within) / (end - begin) / per_second,
        "goodput": within.count(200) / (end - begin) / per_second,
        "most": max(sum(1 for other in times[index:] if other < at + 1) for index, at in enumerate(times)),
        "requests": len(seen),
        "pause": pause,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--per-second", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    os.environ["PERSPECTIVE_API_KEY"] = "benchmark"
    os.environ["NO_PROXY"] = "127.0.0.1"
    from xgray.distributed.cluster import connect

    runs: list[tuple[str, float, int]] = []
    for milliseconds in (10, 100, 500):
        runs += [(f"{number} worker{'s' * (number > 1)}", milliseconds / 1000, given.requests) for number in (1, 4)]
        # These take the latency of every request: fewer will do.
        runs += [(kind, milliseconds / 1000, given.requests // 10) for kind in ("one by one", "Ray Data's HTTP stage")]
    print(
        f"{'latency':>8}  {'client':<22}{'used':>8}{'goodput':>9}{'most in 1 s':>13}{'pause':>9}{'requests':>10}",
        flush=True,
    )
    over = 0
    with connect():
        for kind, latency, number in runs:
            results: list[dict[str, Any]] = [
                measure(kind, latency, number, given.per_second) for _ in range(given.repeats)
            ]
            used, goodput = (statistics.median(one[name] for one in results) for name in ("used", "goodput"))
            most = max(one["most"] for one in results)
            over += "worker" in kind and most > given.per_second
            print(
                f"{latency * 1000:>5.0f} ms  {kind:<22}{used:>8.3f}{goodput:>9.3f}{most:>13.0f}"
                f"{max(one['pause'] for one in results) * 1000:>6.0f} ms{results[0]['requests']:>10.0f}",
                flush=True,
            )
    print(f"runs of ours that passed the quota of {given.per_second:g} a second: {over:.0f}")


if __name__ == "__main__":
    main()
