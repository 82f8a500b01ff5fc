"""The command line with one more stage: a row in the table, and the file ``length_stage.py``."""

import contextlib
import json
import sys
from pathlib import Path

from xgray.config import stages

ROW = stages.Stage(
    "lengths",
    version=1,
    summary="Measure how long completions are.",
    per="model",
    needs={"completions": "generate/{model}"},
    module="tests.experiment.length_stage",
    report_section="tests.experiment.length_stage",
)
stages.STAGES = (*stages.STAGES[:-1], ROW, stages.STAGES[-1])

if __name__ == "__main__":
    # A line of arguments at a time, so that the commands share the imports and one Ray.
    from tests.processes import xgray
    from xgray.distributed.cluster import connect

    with contextlib.ExitStack() as cluster:
        for line in sys.stdin:
            arguments = json.loads(line)
            if "--help" not in arguments:
                cluster.enter_context(connect())
            done = xgray(*arguments, cwd=Path.cwd())
            print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
