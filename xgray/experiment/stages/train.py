"""Stage ``train/{variant}``: tune the base model on preference pairs.

preference pairs ─▶ train/{variant}/adapter or merged, metrics.jsonl
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

from xgray.config import Model
from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.runs.training_numbers import step_in_words
from xgray.runs.training_progress import read_training_progress

log = logging.getLogger(__name__)

LINE_SECONDS = 15.0
"""The shortest time between two lines about a training's steps."""


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the tuned weights depend on: the base model, the pairs, the section with its seed."""
    from xgray.data.pairs import pairs_fingerprint
    from xgray.models.source import model_fingerprint

    experiment = plan.experiment
    variant = experiment.variant(model or "")
    section = experiment.train_section(variant)
    # Earlier versions adapted BLOOM's head too: their trainings are others.
    is_without_head = section.lora_targets == "released" and section.method != "full" and _is_bloom(experiment.model)
    return {
        **({"lora_targets": "without the head"} if is_without_head else {}),
        "inputs": {
            "model": model_fingerprint(experiment.model),
            "pairs": pairs_fingerprint(section.pairs, section.limit),
        },
        "section": {**section_payload(section), "seed": experiment.training_seed(variant)},
    }


def _is_bloom(model: Model) -> bool:
    from xgray.models.load import load_config
    from xgray.models.source import resolve

    return bool(load_config(resolve(model), model.revision).model_type == "bloom")


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the trackers can write.

    Raises:
        InputError: they cannot.
    """
    from xgray.train.trackers import check_trackers

    section = plan.experiment.train_section(plan.experiment.variant(planned.model or ""))
    check_trackers(section.execution.trackers, planned.folder)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Train one variant, or resume its training from the last checkpoint.

    Raises:
        InputError: the pairs, the model or the section cannot be trained with.
        StageError: training died too often; the same call resumes it.
    """
    from xgray.data.pairs import read_pairs
    from xgray.distributed.train import run_training
    from xgray.distributed.train_control import STEPS, Phase

    experiment = plan.experiment
    variant = experiment.variant(planned.model or "")
    section = experiment.train_section(variant)
    report_steps = _StepReport(planned, on_progress)

    def report(phase: Phase) -> None:
        if phase.name == STEPS:
            with contextlib.suppress(OSError):  # the storage may answer again a second later
                report_steps()
        else:
            on_progress(f"{planned.label}: {phase.name}", phase.done, phase.total)

    try:
        return run_training(
            experiment.model,
            section,
            read_pairs(section.pairs, section.limit),
            experiment.training_seed(variant),
            planned.folder,
            reference_fingerprint=planned.payload["inputs"]["model"],
            on_phase=report,
        )
    finally:
        report_steps()


class _StepReport:
    """Reports the optimizer steps that the workers have logged, and how fast the last one was."""

    def __init__(self, planned: PlannedStage, on_progress: OnProgress) -> None:
        self._planned = planned
        self._on_progress = on_progress
        self._last_line = float("-inf")
        self._last_step = 0

    def __call__(self) -> None:
        progress = read_training_progress(self._planned.place)
        if progress.total:
            self._on_progress(self._planned.label, progress.done, progress.total)
        row, now = progress.last_step, time.monotonic()
        if row and row["step"] != self._last_step and now - self._last_line >= LINE_SECONDS:
            self._last_step, self._last_line = row["step"], now
            log.info("%s: step %d of %d: %s", self._planned.label, row["step"], progress.total, step_in_words(row))
