"""Stage ``capability``: run lm-evaluation-harness on each model, and compare tuned models with the base (Table 3).

    tasks ─▶ capability/{model}/results/{task}.json ─▶ capability/{model}/metrics.json

A task's file holds what the harness measured, with the value of every question; ``metrics.json`` holds the metrics with
intervals and, for a tuned model, the change from the base. A unit of work is one task on one model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from xgray.config import BASE, Capability
from xgray.evaluate.metrics_file import CapabilityMetrics, TaskRow
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
    """Check that the harness is installed and knows all tasks.

    Raises:
        InputError: it is not, or does not.
    """
    from xgray.evaluate.harness import find_tasks

    section = plan.experiment.capability
    assert section is not None
    find_tasks(section.tasks)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Run all tasks on one model, except those that have results already, and write ``metrics.json``.

    Ray must be running.

    Raises:
        InputError: the harness is not installed or does not know a task, or the model cannot be found.
        StageError: workers died, or questions cannot be downloaded. Results so far are kept: the same call continues.
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
    metrics: CapabilityMetrics = {
        "harness": versions,
        "confidence": experiment.evaluate.confidence,
        "tasks": summary(rows, experiment.evaluate.confidence),
    }
    if model != BASE:
        before = plan.finished("capability", BASE).folder
        metrics["comparison"] = comparison(_rows(before, tasks), rows, experiment.evaluate.confidence)
    folder.write_json("metrics.json", metrics)
    result.counts["num_questions"] = sum(row["num_questions"] for row in rows if row["questions"])
    result.measured["harness"] = versions
    return result


def _rows(folder: Folder, tasks: Iterable[str]) -> list[TaskRow]:
    """Read the rows of all tasks and groups from a model's results."""
    return [row for task in tasks for row in (folder / RESULTS).read_mapping(result_file(task))["rows"]]


def result_file(task: str) -> str:
    """Return the name of a task's results file."""
    return f"{quote(task, safe=' ')}.json"


def measure_tasks(
    output: Folder,
    tasks: Mapping[str, str],
    weights: Weights,
    section: Capability,
    on_progress: Callable[[int, int], None],
) -> StageResult:
    """Write ``{task}.json`` into ``output`` for each task that has no results yet. Ray must be running.

    Args:
        tasks: as :func:`xgray.evaluate.harness.find_tasks` returns them.
        on_progress: called with the number of finished tasks and the number of all tasks.

    Raises:
        InputError: a task's questions cannot be read, or the model cannot be loaded.
        StageError: questions cannot be downloaded now, or workers died repeatedly. The same call continues.
    """
    from xgray.distributed.workers import Work, compute_missing

    began = time.perf_counter()
    units = [Work(result_file(task), 1, (task, spec)) for task, spec in tasks.items()]
    arguments, num_workers = (weights, section, output), section.execution.num_workers
    computed = compute_missing(CapabilityWorker, arguments, units, output, "capability", num_workers, on_progress)
    return StageResult(
        counts={"num_tasks": computed.total, "num_reused": computed.reused},
        device=computed.device,
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

        weights = self._weights
        return load_harness_model(
            weights.path, weights.dtype, weights.revision, self._section.execution.batch_size, weights.tokenizer
        )

    def work(self, unit: tuple[str, str]) -> str:
        """Run one task, write its results, and return the name of the device."""
        from xgray.evaluate.harness import load_task, run_task
        from xgray.models.load import device_name

        name, spec = unit
        task = load_task(name, spec)  # before the model: missing questions should not cost loading it
        self._output.write_json(
            result_file(name), run_task(self._model, task, self._section.num_fewshot, self._section.limit)
        )
        return device_name()
