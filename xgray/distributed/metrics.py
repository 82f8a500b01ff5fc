"""Metrics of a run for Prometheus, counted by actors and the driver and exported by Ray's agents on every node.

In Prometheus every name begins with ``ray_xgray_``, counters end in ``_total``, and each metric has the tags ``run``,
``stage`` and ``model``. ``jobs/grafana.json`` is a Grafana dashboard of them.
"""

from __future__ import annotations

import functools
from typing import Any, NotRequired, TypedDict

from ray.util.metrics import Counter, Gauge, Histogram


class BlockReport(TypedDict):
    """What an actor reports of one block that it committed."""

    stage: str
    model: str
    num_prompts: int
    num_completions: int
    num_tokens: int
    num_errors: int
    start_seconds: float
    """Seconds that the engine took to start for this block; 0 where it ran already."""
    began: float
    ended: float
    """Times of the actor's clock, in seconds since the epoch."""
    seconds: float
    device: str
    measured: dict[str, Any]
    scorer_counts: NotRequired[dict[str, float]]
    """What the scorer counted since its last report."""


TAGS = ("run", "stage", "model")

COUNTERS = {
    "prompts": "Prompts committed.",
    "completions": "Completions committed: sampled or scored.",
    "tokens": "Tokens sampled.",
    "errors": "Prompts recorded with an error, and missing scores.",
    "engine_starts": "Starts of an engine, with the first or with other weights.",
    "requests": "Requests sent to a scoring service.",
    "retries": "Requests that were sent again after a failure.",
    "quota_wait_seconds": "Seconds that requests waited for the rate limit, summed over requests.",
    "blocks": "Blocks committed.",
}
GAUGES = {
    "done": "Prompts or training steps done.",
    "wanted": "Prompts or training steps in all.",
}
HISTOGRAMS = {
    "block_seconds": "Seconds from a block's beginning to its commit.",
    "engine_start_seconds": "Seconds that the start of an engine took.",
}
SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]


@functools.cache
def _counter(name: str) -> Counter:
    return Counter(f"xgray_{name}", COUNTERS[name], TAGS)


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"xgray_{name}", GAUGES[name], TAGS)


@functools.cache
def _histogram(name: str) -> Histogram:
    return Histogram(f"xgray_{name}", HISTOGRAMS[name], SECONDS, TAGS)


def count_block(run: str, report: BlockReport) -> None:
    """Count one committed block. The actor that committed it calls this once.

    Args:
        run: the run's name.
        report: the actor's report of the block.
    """
    tags = {"run": run, "stage": report["stage"], "model": report["model"]}
    scorer = report.get("scorer_counts", {})
    counts = {
        "blocks": 1,
        "prompts": report["num_prompts"],
        "completions": report["num_completions"],
        "tokens": report["num_tokens"],
        "errors": report["num_errors"],
        "engine_starts": int(report["start_seconds"] > 0),
        "requests": scorer.get("num_requests", 0),
        "retries": scorer.get("num_retries", 0),
        "quota_wait_seconds": scorer.get("quota_wait_seconds", 0),
    }
    for name, value in counts.items():
        if value > 0:  # Ray refuses to add zero
            _counter(name).inc(value, tags)
    _histogram("block_seconds").observe(report["seconds"], tags)
    if report["start_seconds"] > 0:
        _histogram("engine_start_seconds").observe(report["start_seconds"], tags)


def show_progress(run: str, label: str, done: int, total: int) -> None:
    """Export how much of a stage is done. The driver calls this.

    Args:
        run: the run's name.
        label: ``stage`` or ``stage/model``; the phases of a training (``train/dpo: reference``) are not exported.
        done: prompts or training steps that are done.
        total: prompts or training steps in all; 0 while unknown.
    """
    stage, _, model = label.partition("/")
    if ": " in model:
        return  # a phase of a training, whose unit is not that of the stage
    tags = {"run": run, "stage": stage, "model": model}
    _gauge("done").set(done, tags)
    _gauge("wanted").set(total, tags)
