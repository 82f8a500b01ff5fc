"""Metrics of a run, for Prometheus: Ray's agents export what actors and driver count, on every node of the cluster.

Every name begins with ``ray_xgray_`` there, counters end in ``_total``, and each has the tags ``run``, ``stage`` and
``model``. ``jobs/grafana.json`` is a board of them.
"""

from __future__ import annotations

import functools
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

TAGS = ("run", "stage", "model")

COUNTERS = {
    "prompts": "Prompts committed.",
    "completions": "Completions committed: sampled or scored.",
    "tokens": "Tokens sampled.",
    "errors": "Prompts recorded with an error, and missing scores.",
    "engine_starts": "Engines started or loaded with other weights.",
    "requests": "Requests sent to a scoring service.",
    "retries": "Requests that were sent again after a failure.",
    "quota_wait_seconds": "Seconds that requests waited for their turn in the quota, summed over requests.",
    "blocks": "Blocks committed.",
}
GAUGES = {
    "done": "Prompts, or training steps, that are done.",
    "wanted": "Prompts, or training steps, that there are to do.",
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


def count_block(run: str, part: dict[str, Any]) -> None:
    """Count one committed block; called once for each, by the actor that committed it.

    Args:
        run: the run's name.
        part: what the actor says of the block, see :data:`xgray.distributed.actors.Block`.
    """
    tags = {"run": run, "stage": part["stage"], "model": part["model"]}
    scorer = part.get("scorer_counts", {})
    counts = {
        "blocks": 1,
        "prompts": part["num_prompts"],
        "completions": part["num_completions"],
        "tokens": part["num_tokens"],
        "errors": part["num_errors"],
        "engine_starts": int(part["start_seconds"] > 0),
        "requests": scorer.get("num_requests", 0),
        "retries": scorer.get("num_retries", 0),
        "quota_wait_seconds": scorer.get("quota_wait_seconds", 0),
    }
    for name, value in counts.items():
        if value > 0:  # Ray refuses to add nothing
            _counter(name).inc(value, tags)
    _histogram("block_seconds").observe(part["seconds"], tags)
    if part["start_seconds"] > 0:
        _histogram("engine_start_seconds").observe(part["start_seconds"], tags)


def show_progress(run: str, label: str, done: int, total: int) -> None:
    """Show how much of a stage is done; called by the driver.

    Args:
        run: the run's name.
        label: ``stage`` or ``stage/model``.
        done: prompts, or training steps.
        total: how many there are; 0 while it is not known.
    """
    stage, _, model = label.partition("/")
    tags = {"run": run, "stage": stage, "model": model}
    _gauge("done").set(done, tags)
    _gauge("wanted").set(total, tags)
