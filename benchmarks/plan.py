"""Compare ``xgray plan --measure`` with the run that follows: seconds predicted and seconds taken by each stage.

    python -m benchmarks.plan [--prompts 3] [--k 4] [--steps 12] [--rounds 1]

Both use the embedded quickstart (SmolLM2-135M, 17 languages, local scorer) at the given size, each in a new process,
one after the other. The row ``all`` is the time of the whole process. The load average shows how busy the machine was.
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


def experiment_arguments(options: argparse.Namespace, folder: str) -> list[str]:
    """Return the experiment file and the overrides, for both commands."""
    return [
        str(files("xgray") / "embedded" / "experiments" / "quickstart.yaml"),
        *("--runs", folder),
        *("--prompts.limit", str(options.prompts)),
        *("--generate.k", str(options.k)),
        *("--train.max-steps", str(options.steps)),
    ]


def run(arguments: list[str]) -> dict[str, float]:
    """Run the experiment in this process, and return the seconds of each stage, from the times of its progress."""
    from xgray.config.file import load_experiment, parse_overrides
    from xgray.estimate.measure import Timeline
    from xgray.experiment.driver import run_experiment
    from xgray.experiment.plan import make_plan

    experiment = load_experiment(Path(arguments[0]), parse_overrides(arguments[1:]))
    timeline = Timeline(lambda label, done, total, errors=0: None)
    run_experiment(make_plan(experiment), on_progress=timeline)
    begins = timeline.reports["train/dpo"][0][0], timeline.last("train/"), timeline.last("score/")
    ends = timeline.last("evaluate: fluency"), timeline.reports["report"][0][0], timeline.last("report")
    marks = [0.0, *begins, *ends]
    return dict(zip(STAGES, (end - begin for begin, end in itertools.pairwise(marks)), strict=True))


def stage_of(line: str) -> str:
    """Return the row of the table to which a line of the estimate belongs."""
    first = line.partition("/")[0]
    if first.startswith(("generate", "score")):
        return "generate and score"
    return first.removeprefix("evaluate: ")


def run_python(command: list[str]) -> tuple[Any, float]:
    """Run a Python process, and return the JSON that it prints last and its seconds."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *command], capture_output=True, check=False)
    if process.returncode:
        sys.exit(process.stderr.decode()[-3000:])
    return json.loads(process.stdout.splitlines()[-1]), time.perf_counter() - start


def compare(options: argparse.Namespace) -> None:
    """Estimate and run the experiment once, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = experiment_arguments(options, folder)
        estimate, estimate_seconds = run_python(["-m", "xgray.cli.main", "plan", *arguments, "--measure", "--json"])
        load_before = os.getloadavg()[0]
        taken, run_seconds = run_python([__file__, "--child", *arguments])
    predicted = dict.fromkeys(STAGES, 0.0)
    for line in estimate["lines"]:
        predicted[stage_of(line["stage"])] += line["seconds"]
    predicted["generate and score"] -= estimate["saved_seconds"]
    print(f"\n{'stage':<20}{'predicted s':>12}{'taken s':>10}{'predicted/taken':>17}")
    for stage in STAGES:
        print(f"{stage:<20}{predicted[stage]:>12.1f}{taken[stage]:>10.1f}{predicted[stage] / taken[stage]:>17.2f}")
    print(f"{'all':<20}{estimate['seconds']:>12.1f}{run_seconds:>10.1f}{estimate['seconds'] / run_seconds:>17.2f}")
    load_after = os.getloadavg()[0]
    print(
        f"the estimate took {estimate_seconds:.0f} s; load before the run {load_before:.1f}, after it {load_after:.1f}"
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=3, help="prompts of each language")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="training steps")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for _ in range(options.rounds):
        compare(options)


if __name__ == "__main__":
    main()
