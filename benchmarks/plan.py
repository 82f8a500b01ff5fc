"""`xgray plan --measure` against the run that follows: seconds predicted and taken, stage by stage.

    python benchmarks/plan.py [--prompts 3] [--k 4] [--steps 12] [--rounds 1]

The embedded quickstart (SmolLM2-135M, 17 languages, local scorer) at the size given. Prediction and run are processes
of their own, one after the other; `all` of the run is the whole process. The load average says how quiet it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

STAGES = ("start", "train", "generate and score", "fluency", "metrics", "report")


def options(given: argparse.Namespace, folder: str) -> list[str]:
    return [
        str(files("xgray") / "embedded" / "experiments" / "quickstart.yaml"), "--runs", folder, "--prompts.limit", str(given.prompts),
        "--generate.k", str(given.k), "--train.max-steps", str(given.steps),
    ]  # fmt: skip


def run(arguments: list[str]) -> dict[str, float]:
    """Run the experiment in this process; seconds of each stage, from what it says of its progress."""
    from xgray.config.file import load_experiment, parse_overrides
    from xgray.estimate.measure import Timeline
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan

    experiment = load_experiment(Path(arguments[0]), parse_overrides(arguments[1:]))
    heard = Timeline(lambda label, done, total, errors=0: None)
    run_experiment(make_plan(experiment), on_progress=heard)
    begins = heard.reports["train/dpo"][0][0], heard.last("train/"), heard.last("score/")
    ends = heard.last("evaluate: fluency"), heard.reports["report"][0][0], heard.last("report")
    marks = [0.0, *begins, *ends]
    return dict(zip(STAGES, (end - begin for begin, end in itertools.pairwise(marks)), strict=True))


def stage_of(line: str) -> str:
    first = line.partition("/")[0]
    if first.startswith(("generate", "score")):
        return "generate and score"
    return first.removeprefix("evaluate: ")


def child(command: list[str]) -> tuple[Any, float]:
    """What a process printed as JSON, and its seconds."""
    began = time.perf_counter()
    answer = subprocess.run([sys.executable, *command], capture_output=True, check=False)
    if answer.returncode:
        sys.exit(answer.stderr.decode()[-3000:])
    return json.loads(answer.stdout.splitlines()[-1]), time.perf_counter() - began


def compare(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = options(given, folder)
        told, measuring = child(["-m", "xgray.cli.main", "plan", *arguments, "--measure", "--json"])
        quiet = os.getloadavg()[0]
        taken, whole = child([__file__, "--child", *arguments])
    predicted = dict.fromkeys(STAGES, 0.0)
    for line in told["lines"]:
        predicted[stage_of(line["stage"])] += line["seconds"]
    predicted["generate and score"] -= told["saved_seconds"]
    print(f"\n{'stage':<20}{'predicted s':>12}{'taken s':>10}{'predicted/taken':>17}")
    for stage in STAGES:
        print(f"{stage:<20}{predicted[stage]:>12.1f}{taken[stage]:>10.1f}{predicted[stage] / taken[stage]:>17.2f}")
    print(f"{'all':<20}{told['seconds']:>12.1f}{whole:>10.1f}{told['seconds'] / whole:>17.2f}")
    print(f"the measurement took {measuring:.0f} s; load before the run {quiet:.1f}, after it {os.getloadavg()[0]:.1f}")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="of the training")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    for _ in range(given.rounds):
        compare(given)


if __name__ == "__main__":
    main()
