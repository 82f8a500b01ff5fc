"""What tuning costs elsewhere: lm-evaluation-harness on a model, and against the model before tuning (Table 3).

capability/{model}/results/{task}.json   what the harness measured, with every question's value
capability/{model}/metrics.json          metrics with intervals; of a tuned model, the change from the base
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from xgray.config import BASE, Capability
from xgray.experiment.plan import Plan, PlannedStage, inside_payload
from xgray.experiment.weights import model_weights
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.storage.fingerprint import file_fingerprint
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from xgray.generate.engine import Weights


RESULTS = "results"


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the results depend on: the model, the tasks' own files, the section and the seed."""
    from xgray.data.task_file import is_task_file, task_files

    experiment, section = plan.experiment, plan.experiment.capability
    assert section is not None
    paths = [Path(task) for task in section.tasks if is_task_file(task)]
    inputs: dict[str, Any] = {
        "tasks": {str(path): [file_fingerprint(file) for file in task_files(path)] for path in paths}
    }
    if model != BASE:
        inputs["before"] = plan.stage("capability", BASE).fingerprint
    intervals = experiment.evaluate.model_dump(include={"confidence", "resamples"})
    return inside_payload(plan, section, inputs, model, intervals=intervals, seed=experiment.seed)


def check(plan: Plan, planned: PlannedStage) -> None:
    """Refuse tasks that the harness does not know."""
    from xgray.evaluate.harness import find_tasks

    section = plan.experiment.capability
    assert section is not None
    find_tasks(section.tasks)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Measure one model on all tasks; those whose results are there are not measured again. Ray must be up.

    Raises:
        InputError: the harness is missing or does not know a task, or a model is not there.
        StageError: workers died, or questions cannot be fetched; the same call goes on.
    """
    from xgray.evaluate.capability import comparison, summary
    from xgray.evaluate.harness import find_tasks

    experiment, section, model = plan.experiment, plan.experiment.capability, planned.model or BASE
    assert section is not None
    plan.require_model(model)
    tasks = find_tasks(section.tasks)
    weights, _ = model_weights(plan, model)
    folder = planned.folder
    result = measure_tasks(
        folder / RESULTS, tasks, weights, section, lambda done, total: on_progress(planned.label, done, total)
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
        before = plan.finished("capability", BASE).folder
        metrics["comparison"] = comparison(_rows(before, tasks), rows, *drawn)
    folder.write_json("metrics.json", metrics)
    result.counts["num_questions"] = sum(row["num_questions"] for row in rows if row["questions"])
    result.measured["harness"] = versions
    return result


def _rows(folder: Folder, tasks: Iterable[str]) -> list[dict[str, Any]]:

    return [row for task in tasks for row in (folder / RESULTS).read_json(result_file(task))["rows"]]


def result_file(task: str) -> str:
    return f"{quote(task, safe=' ')}.json"


def measure_tasks(
    output: Folder,
    tasks: Mapping[str, str],
    weights: Weights,
    section: Capability,
    on_progress: Callable[[int, int], None],
) -> StageResult:
    """Write ``{task}.json`` of each task into ``output``. Ray must be up.

    Args:
        tasks: as :func:`xgray.evaluate.harness.find_tasks` gives them.
        on_progress: called with how many tasks are done, and how many there are.

    Raises:
        InputError: a task's questions are wrong, or the model cannot be loaded.
        StageError: questions cannot be fetched now, or workers died again and again; the same call goes on.
    """
    from xgray.distributed.workers import Work, make_missing

    began = time.perf_counter()
    units = [Work(result_file(task), 1, (task, spec)) for task, spec in tasks.items()]
    arguments, num_workers = (weights, section, output), section.execution.num_workers
    made = make_missing(CapabilityWorker, arguments, units, output, "capability", num_workers, on_progress)
    return StageResult(
        counts={"num_tasks": made.total, "num_reused": made.reused},
        device=made.device,
        seconds=time.perf_counter() - began,
    )


class CapabilityWorker:
    """One copy of a model."""

    def __init__(self, weights: Weights, section: Capability, output: Folder) -> None:
        self._weights = weights
        self._section = section
        self._output = output

    @cached_property
    def _model(self) -> LM:
        from xgray.evaluate.harness import load_harness_model

        one = self._weights
        return load_harness_model(one.path, one.dtype, one.revision, self._section.execution.batch_size)

    def work(self, unit: tuple[str, str]) -> str:
        """Measure and write one task; the device."""
        from xgray.evaluate.harness import load_task, run_task
        from xgray.models.load import device_name

        name, spec = unit
        task = load_task(name, spec)  # first: questions that are not there cost no model
        self._output.write_json(
            result_file(name), run_task(self._model, task, self._section.num_fewshot, self._section.limit)
        )
        return device_name()
