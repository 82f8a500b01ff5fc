"""What Prometheus reads from a real Ray, and whether the Grafana dashboard queries only metrics that exist."""

import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.processes import free_ports, start_python
from xgray.distributed.metrics import COUNTERS, GAUGES, HISTOGRAMS

BOARD = Path(__file__).parents[2] / "jobs" / "grafana.json"
SAMPLE = re.compile(r"^(ray_xgray_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def read(port):
    """Return xgray's samples by name, run, stage and model; the buckets of a histogram have their bound in the name.

    A histogram's sum is ignored, because Ray exports it as if every value lay in the middle of its bucket.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for name, labels, value in SAMPLE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        name = name.removeprefix("ray_xgray_") + (f" {tags['le']}" if "le" in tags else "")
        found[name, tags["run"], tags["stage"], tags["model"]] = float(value)
    return found


@pytest.mark.slow
def test_prometheus_reads_the_counts_of_actors_and_driver():
    (port,) = free_ports(1)
    with start_python("-m", "tests.distributed.metrics_driver", port, stdin=subprocess.PIPE) as driver:
        while "counted" not in (line := driver.stdout.readline()):
            assert line, "the driver has ended"
        found = {}
        deadline = time.monotonic() + 90
        while not {("prompts_total", "e", "score", "base"), ("done", "e", "train", "dpo")} <= found.keys():
            assert time.monotonic() < deadline, found
            time.sleep(1)
            found = read(port)
        driver.communicate("")
    score = {name: value for (name, run, stage, model), value in found.items() if (stage, model) == ("score", "base")}
    assert {name: value for name, value in score.items() if name.endswith("_total")} == {
        "blocks_total": 2, "prompts_total": 8, "completions_total": 16, "errors_total": 6,
        "requests_total": 18, "retries_total": 2, "quota_wait_seconds_total": 5,
    }  # fmt: skip
    bounds = ("0.1", "1.0", "3.0", "+Inf")
    assert [score[f"block_seconds_bucket {bound}"] for bound in bounds] == [1, 1, 2, 2]
    assert found["tokens_total", "e", "generate", "base"] == 160
    assert found["engine_starts_total", "e", "generate", "base"] == 1
    assert found["engine_start_seconds_count", "e", "generate", "base"] == 1
    assert (found["done", "e", "train", "dpo"], found["wanted", "e", "train", "dpo"]) == (7, 60)
    assert found["wanted", "e", "report", ""] == 1


def test_the_dashboard_queries_only_metrics_that_exist():
    defined = {f"ray_xgray_{name}_total" for name in COUNTERS} | {f"ray_xgray_{name}" for name in GAUGES}
    defined |= {f"ray_xgray_{name}_bucket" for name in HISTOGRAMS}
    board = json.loads(BOARD.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [one["query"] for one in board["templating"]["list"]]
    queried = set(re.findall(r"ray_xgray_\w+", " ".join(queries)))
    assert len(board["panels"]) >= 10
    assert queried <= defined
    assert {f"ray_xgray_{name}" for name in ("prompts_total", "tokens_total", "retries_total")} <= queried
