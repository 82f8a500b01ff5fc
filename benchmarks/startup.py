"""Measure how long the command line takes to start: the median of several calls, as whole processes.

python benchmarks/startup.py [FINISHED_EXPERIMENT.yaml]

With an experiment whose stages are all finished, running it again is measured too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 7


def seconds(command: list[str]) -> float:
    """Return the wall-clock time of a command."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    python = [sys.executable, "-c", "pass"]
    xgray = [sys.executable, "-m", "xgray.cli"]
    cases = {"python itself": python}
    for arguments in (["--help"], ["run", "--help"], ["train", "--help"], ["fields"]):
        cases[f"xgray {' '.join(arguments)}"] = [*xgray, *arguments]
    if len(sys.argv) > 1:
        cases["xgray run, finished"] = [*xgray, "run", sys.argv[1]]
    print(f"{'command':<24}{'median s':>10}{'min':>8}{'max':>8}   of {RUNS}")
    for name, command in cases.items():
        times = [seconds(command) for _ in range(RUNS)]
        print(f"{name:<24}{statistics.median(times):>10.2f}{min(times):>8.2f}{max(times):>8.2f}")


if __name__ == "__main__":
    main()
