"""lm-evaluation-harness over Ray: a unit of work is one task or group on one model, committed as one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote

from xgray.config import Capability
from xgray.distributed.spread import Work, make_missing
from xgray.runs import StageResult
from xgray.storage import Folder

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from xgray.generate.engine import Weights


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
        from xgray.models import device_name

        name, spec = unit
        task = load_task(name, spec)  # first: questions that are not there cost no model
        self._output.write_json(
            result_file(name), run_task(self._model, task, self._section.num_fewshot, self._section.limit)
        )
        return device_name()
