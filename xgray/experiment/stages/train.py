"""Stage ``train/{variant}``: tune the base model on preference pairs.

preference pairs ─▶ train/{variant}/adapter or merged, metrics.jsonl
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from xgray.config import Model, Train
from xgray.experiment.plan import Plan, PlannedStage
from xgray.experiment.side_by_side import Job, failure, run_side_by_side
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress
from xgray.runs.training_numbers import step_in_words
from xgray.runs.training_progress import read_training_progress

if TYPE_CHECKING:
    from xgray.distributed.placement import WorkerShare
    from xgray.train.memory import ModelShape

log = logging.getLogger(__name__)

USABLE_MEMORY = 0.9
"""The part of a memory that trainings may fill; the rest is lost between the blocks of several processes."""
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
            "pairs": pairs_fingerprint(section.pairs, section.limit, section.languages),
        },
        "section": {**section_payload(section), "seed": experiment.training_seed(variant)},
    }


def _is_bloom(model: Model) -> bool:
    from xgray.models.load import load_config
    from xgray.models.source import resolve

    return bool(load_config(resolve(model), model.revision).model_type == "bloom")


def check(plan: Plan, planned: PlannedStage) -> None:
    """Check that the trackers can write, and that the model has a chat template if the pairs are messages.

    Raises:
        InputError: they cannot, or it has none.
    """
    from xgray.data.pairs import holds_messages
    from xgray.models.load import load_tokenizer
    from xgray.models.source import resolve
    from xgray.train.pairs import check_chat_template
    from xgray.train.trackers import check_trackers

    model = plan.experiment.model
    section = plan.experiment.train_section(plan.experiment.variant(planned.model or ""))
    check_trackers(section.execution.trackers, planned.folder)
    if section.chat_template and holds_messages(section.pairs):
        check_chat_template(load_tokenizer(resolve(model), model.revision), section)


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress, stop: Future[None] | None = None) -> StageResult:
    """Train one variant, or resume its training from the last checkpoint.

    Args:
        stop: set when the training is to save its step and stop; needed where it runs in a thread of its own.

    Raises:
        InputError: the pairs, the model or the section cannot be trained with.
        StageError: training died too often; the same call resumes it.
    """
    from xgray.data.pairs import load_pairs, num_measured
    from xgray.data.prompts import read_prompts
    from xgray.distributed.train import run_training
    from xgray.distributed.train_control import STEPS, Phase
    from xgray.distributed.training import TrainingSlot

    experiment = plan.experiment
    slot = TrainingSlot(shares(plan)[planned.label], planned.label, stop or Future())
    variant = experiment.variant(planned.model or "")
    section = fitted_section(plan, variant.name)
    report_steps = _StepReport(planned, on_progress)

    def report(phase: Phase) -> None:
        if phase.name == STEPS:
            with contextlib.suppress(OSError):  # the storage may answer again a second later
                report_steps()
        else:
            on_progress(f"{planned.label}: {phase.name}", phase.done, phase.total)

    loaded = load_pairs(section.pairs, section.limit, section.languages)
    counts = dict(loaded.counts)
    if measured := num_measured(loaded.pairs, read_prompts(experiment.prompts, experiment.languages)):
        counts["num_measured_too"] = measured
        log.warning(
            "%s: %d pairs have a prompt on which the models are measured too, so that the change in toxicity there "
            "says nothing of other prompts. Take other pairs (train.pairs) or other prompts (prompts.path)",
            section.pairs,
            measured,
        )
    try:
        result = run_training(
            experiment.model,
            section,
            loaded.pairs,
            experiment.training_seed(variant),
            planned.folder,
            reference_fingerprint=planned.payload["inputs"]["model"],
            slot=slot,
            on_phase=report,
        )
    finally:
        report_steps()
    return replace(result, counts={**result.counts, **counts})


def fitted_section(plan: Plan, name: str) -> Train:
    """Return the section of a variant's training with as many workers as the cluster can hold. Ray must be up."""
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.train import fitted

    return fitted(plan.experiment.train_section(plan.experiment.variant(name)), cluster_capacity())


def shares(plan: Plan) -> dict[str, WorkerShare]:
    """Return what each worker of each of the plan's trainings takes, by label. Ray must be up.

    Raises:
        InputError: the cluster can never hold one of them.
    """
    from xgray.distributed.cluster import cluster_capacity
    from xgray.distributed.placement import place_trainings

    labels, capacity = [stage.label for stage in plan.by_model("train").values()], cluster_capacity()
    sections = [fitted_section(plan, name) for name in plan.by_model("train")]
    num_by_memory = _num_by_memory(plan.experiment.model, sections, capacity.has_gpu) if len(sections) > 1 else 1
    placed = place_trainings(capacity, [section.execution for section in sections], num_by_memory)
    return dict(zip(labels, placed, strict=True))


def _num_by_memory(model: Model, sections: Sequence[Train], gpu: bool) -> int:
    """Return how many of the trainings, the largest ones, the memory of a GPU or of a node holds; one at least."""
    from xgray.distributed.cluster import memory_bytes
    from xgray.train.memory import CUDA_BYTES, training_memory

    total = memory_bytes(gpu)
    if total is None:
        return 1
    shape = _shape(model)
    # A process on a CPU takes about as much beside its tensors as CUDA does.
    needed = max(training_memory(shape, section, gpu).peak for section in sections) + CUDA_BYTES
    return max(1, int(USABLE_MEMORY * total / needed))


@lru_cache(maxsize=1)
def _shape(model: Model) -> ModelShape:
    from xgray.models.load import load_skeleton
    from xgray.models.source import resolve
    from xgray.train.memory import read_shape

    return read_shape(load_skeleton(resolve(model), model.revision))


def run_all(plan: Plan, planned: Sequence[PlannedStage], run_one: Callable[[PlannedStage, Future[None]], None]) -> None:
    """Train several variants, as many at a time as fit on the cluster. Ray must be up.

    Args:
        run_one: runs a stage and writes its manifest, in a thread, until its future is set.

    Raises:
        XgrayError: trainings failed, when the others have come to their end.
    """
    from xgray.distributed.cluster import cluster_capacity

    placed, capacity = shares(plan), cluster_capacity()
    jobs = []
    for stage in planned:
        num_workers = fitted_section(plan, stage.model or "").execution.num_workers
        share = placed[stage.label]
        run_stage = partial(run_one, stage)
        jobs.append(Job(stage.label, num_workers * share.cpus, num_workers * share.gpus, run_stage))
    num_cpus, num_gpus = (sum(shape[index] * count for shape, count in capacity.expected.items()) for index in (0, 1))
    if failed := run_side_by_side(jobs, num_cpus, num_gpus):
        raise failure(failed, len(planned))


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
