"""jobs/slurm.sbatch, run by bash with Slurm's commands replaced by ones that do on this machine what Slurm would.

Ray's own command is replaced as well, because ``ray symmetric-run`` ends all Rays of the machine; that Ray takes the
options is asked of Ray's parser.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

COMMANDS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'first-node\nsecond-node\n'; else echo "$@" >> requeued; fi""",
    "srun": 'exec "$@"',
    "ray": """
        [ "$1" = symmetric-run ] || exit 0
        shift
        printf '%s\n' "$@" > options
        while [ "$1" != -- ]; do shift; done
        shift
        "$@"
        """,
    "xgray": """
        trap 'echo saved > saved; exit 1' TERM
        printf '%s\n' "$@" > arguments
        [ -n "$CODE" ] && exit "$CODE"
        for _ in $(seq 200); do sleep 0.05; done""",
}
"""``xgray`` ends with the exit code that the test sets, or waits for the signal."""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the batch script as Slurm does."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/bin/bash\n{body}\n")
        command.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment |= {"SLURM_JOB_NODELIST": "[first,second]-node", "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2"}
    environment |= {"SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8", "TMPDIR": str(tmp_path)}

    def run(code="", restarts="0"):
        return subprocess.Popen(
            ["bash", str(ROOT / "jobs" / "slurm.sbatch"), "jobs/mgpt.yaml", "--name", "two words"],
            env=environment | {"CODE": code, "SLURM_RESTART_COUNT": restarts},
            stdout=subprocess.PIPE,
        )

    return run


@pytest.mark.parametrize(
    ("code", "restarts", "requeues"), [("0", "0", False), ("1", "4", True), ("1", "5", False), ("2", "0", False)]
)
def test_a_failed_stage_is_tried_again_and_wrong_input_is_not(start, tmp_path, code, restarts, requeues):
    job = start(code, restarts)
    job.communicate(timeout=30)
    assert job.returncode == int(code)
    assert (tmp_path / "requeued").exists() == requeues
    if requeues:
        assert (tmp_path / "requeued").read_text() == "requeue 4711\n"


def test_the_signal_before_the_end_reaches_the_run_which_saves_and_is_resumed(start, tmp_path):
    job = start()
    while not (tmp_path / "arguments").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=30)
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert b"will resume" in output
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "run", "jobs/mgpt.yaml", "--name", "two words", "--address", "auto",
    ]  # fmt: skip


def test_ray_takes_the_options_and_the_script_asks_slurm_for_what_it_says(start, tmp_path):
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

    start("0").communicate(timeout=30)
    options = (tmp_path / "options").read_text().splitlines()
    options = options[: options.index("--")]
    context = symmetric_run.make_context("symmetric-run", list(options), resilient_parsing=True)
    assert context.params["address"] == "first-node:24711"
    assert context.params["min_nodes"] == 2
    assert curate_and_validate_ray_start_args(options) == ["--num-cpus=64", "--num-gpus=8"]
    asked = [line for line in (ROOT / "jobs" / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --exclusive", "#SBATCH --signal=B:TERM@180"} <= set(asked)
