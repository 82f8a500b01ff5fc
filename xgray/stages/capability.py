"""What tuning costs elsewhere: lm-evaluation-harness on a model, and against the model before tuning (Table 3).

capability/{model}/results/{task}.json   what the harness measured, with every question's value
capability/{model}/metrics.json          metrics with intervals; of a tuned model, the change from the base
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from xgray.config import BASE
from xgray.meter import OnProgress
from xgray.model_weights import model_weights
from xgray.plan import Plan, Planned
from xgray.runs import StageResult
from xgray.storage import Folder

RESULTS = "results"


def run(plan: Plan, one: Planned, on_progress: OnProgress) -> StageResult:
    """Measure one model on all tasks; those whose results are there are not measured again. Ray must be up.

    Raises:
        InputError: the harness is missing or does not know a task, or a model is not there.
        StageError: workers died, or questions cannot be fetched; the same call goes on.
    """
    from xgray.distributed.capability import measure_tasks
    from xgray.evaluate.capability import comparison, summary
    from xgray.evaluate.harness import find_tasks

    experiment, section, model = plan.experiment, plan.experiment.capability, one.place.model or BASE
    assert section is not None
    plan.require_model(model)
    tasks = find_tasks(section.tasks)
    weights, _ = model_weights(plan, model)
    folder = one.place.folder
    result = measure_tasks(
        folder / RESULTS, tasks, weights, section, lambda done, total: on_progress(one.place.label, done, total)
    )
    rows = _rows(folder, tasks)
    versions = ", ".join(sorted({row["harness"] for row in rows}))
    drawn = (experiment.evaluate.confidence, experiment.evaluate.resamples, experiment.seed)
    metrics: dict[str, Any] = {
        "harness": versions,
        "confidence": experiment.evaluate.confidence,
        "tasks": summary(rows, *drawn),
    }
    if model != BASE:
        before = plan.stage("capability", BASE).place.folder
        metrics["comparison"] = comparison(_rows(before, tasks), rows, *drawn)
    folder.write_json("metrics.json", metrics)
    result.counts["num_questions"] = sum(row["num_questions"] for row in rows if row["questions"])
    result.measured["harness"] = versions
    return result


def _rows(folder: Folder, tasks: Iterable[str]) -> list[dict[str, Any]]:
    from xgray.distributed.capability import result_file

    return [row for task in tasks for row in (folder / RESULTS).read_json(result_file(task))["rows"]]
