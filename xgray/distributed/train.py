"""The training of preference pairs, as a task of :mod:`xgray.distributed.training`.

workers: reference ▶ steps ▶ export ──▶ adapter/ or merged/, metrics.jsonl
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import Model, Train
from xgray.data.pairs import language_counts
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.nodes import ClusterCapacity
from xgray.distributed.placement import fit_training, place_training
from xgray.distributed.train_control import EXPORTING, LOADING, STEPS, WAITING, Phase
from xgray.distributed.training import CHECKPOINTS, Interrupted, TrainingSlot, Worker, run_task
from xgray.errors import InputError
from xgray.models.cache import cache_folder
from xgray.models.load import load_tokenizer
from xgray.models.source import is_adapter, local_weights, path_for_workers
from xgray.rows import Pairs
from xgray.runs.manifest import StageResult
from xgray.runs.progress import REFERENCE
from xgray.storage.checksums import move_with_checksums
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder
from xgray.train.checkpoints import Checkpoint
from xgray.train.export import export
from xgray.train.feasible import check_feasible, step_share
from xgray.train.metrics import summarize
from xgray.train.pairs import PreparedPairs, prepare_pairs, reference_pairs
from xgray.train.reference import ReferenceCache
from xgray.train.trackers import TrackedRun, tracker_callbacks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULT = "result.json"


@dataclass(frozen=True)
class PreferenceTask:
    """A training on preference pairs."""

    model: str
    revision: str | None
    section: Train
    pairs: Pairs
    seed: int
    cache: ReferenceCache

    def identity(self, output: Folder) -> str:
        """Return what this training is called by in a tracker: the same for every attempt, with any workers."""
        section = self.section.model_dump(mode="json", exclude={"execution"})
        depends_on = {"output": output.uri, "model": self.cache.fingerprint, "section": section, "seed": self.seed}
        return fingerprint(depends_on)[:16]

    def train(self, worker: Worker) -> dict[str, Any]:
        """See :class:`xgray.distributed.training.Task`."""
        import torch

        if self.section.execution.is_single_process:
            # Without a rank accelerate leaves DDP out, which for a single worker would only copy every gradient.
            os.environ.pop("LOCAL_RANK", None)
        worker.report_phase(LOADING)
        task = replace(self, model=local_weights(self.model))
        tokenizer = load_tokenizer(task.model, task.revision)
        prepared = prepare_pairs(task.pairs, tokenizer, task.section, task.seed)
        newest = worker.newest()
        if newest is None or not newest.ends_training:
            num_computed, num_reused = _run_trainer(worker, task, prepared, tokenizer, newest)
        else:
            num_computed, num_reused = 0, len(prepared.train) + len(prepared.validation)
        worker.report_phase(EXPORTING)
        summary = _export(worker, task) if worker.rank == 0 else {}
        worker.finish()
        worker.report_phase(EXPORTING, 1, 1)
        if worker.rank:
            return {}
        counts = {
            "num_pairs": prepared.num_pairs,
            **{f"num_pairs_{code}": number for code, number in language_counts(task.pairs).items()},
            "num_train": len(prepared.train),
            "num_validation": len(prepared.validation),
            "num_dropped": prepared.num_dropped,
            "num_truncated": prepared.num_truncated,
            "num_reference_computed": num_computed,
            "num_reference_reused": num_reused,
            "tokens": summary.pop("tokens"),
        }
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({worker.job.cpus} threads)"
        return {"counts": counts, "measured": summary, "device": device}


def run_training(
    model: Model,
    section: Train,
    pairs: Pairs,
    seed: int,
    output: Folder,
    *,
    reference_fingerprint: str,
    slot: TrainingSlot | None = None,
    on_phase: Callable[[Phase], None] = lambda phase: None,
) -> StageResult:
    """Tune ``model`` on ``pairs``, or resume what an earlier call with the same arguments left in ``output``.

    Leaves ``metrics.jsonl`` and the best checkpoint by validation loss, or the last one if nothing is held out:
    ``adapter/``, or ``merged/`` where all weights were tuned. Ray must be up. After a ``KeyboardInterrupt``, which the
    command line also raises at SIGTERM, or when ``slot.stop`` is set, the workers have ``GRACE_SECONDS`` to save the
    step in flight; a second interrupt does not wait.

    Args:
        seed: of the split, the order and the adapter's start.
        output: a folder that all nodes mount under the same path, or any URI.
        reference_fingerprint: of the model's weights, see :func:`xgray.models.source.model_fingerprint`.
        slot: the training's place on the cluster; by default it has the cluster for itself.
        on_phase: called once a second with each phase that has begun since the workers started, mostly in a thread.

    Raises:
        InputError: the section, the pairs or the model cannot be trained with.
        StageError: the training failed half-way; calling again resumes from the last checkpoint.
    """
    began = time.perf_counter()
    if output.exists(RESULT):
        return StageResult(**output.read_mapping(RESULT))
    section = fitted(section, cluster_capacity())
    slot = slot or TrainingSlot(place_training(cluster_capacity(), section.execution))
    check_feasible(section, slot.share.gpus > 0)
    base = _base_model(model)
    cache = ReferenceCache.of(section, reference_fingerprint, str(cache_folder()))
    task = PreferenceTask(base, model.revision, section, pairs, seed, cache)
    report, interrupted = run_task(task, section.execution, output, slot, on_phase)
    result = StageResult(
        report["counts"], report["measured"], device=report["device"], seconds=time.perf_counter() - began
    )
    output.write_json(RESULT, asdict(result))
    (output / CHECKPOINTS).delete()
    if interrupted:
        raise KeyboardInterrupt
    return result


def fitted(section: Train, capacity: ClusterCapacity) -> Train:
    """Return the section with as many workers as the cluster can hold and as can share an optimizer step evenly."""
    execution = fit_training(capacity, section.execution, lambda number: step_share(section, number) is not None)
    return section.model_copy(update={"execution": execution})


def _base_model(model: Model) -> str:
    """Return the model's path as the workers load it.

    Raises:
        InputError: it is an adapter.
    """
    base = path_for_workers(model)
    if Path(base).is_dir() and is_adapter(base):
        raise InputError(f"model.id: {base} is an adapter. Name a whole model, from which tuning can begin.")
    return base


def _run_trainer(
    worker: Worker,
    task: PreferenceTask,
    prepared: PreparedPairs,
    tokenizer: PreTrainedTokenizerBase,
    newest: Checkpoint | None,
) -> tuple[int, int]:
    """Train from the newest checkpoint, or from the start, to the end.

    Returns:
        How many pairs the reference's log-probabilities were computed for, and for how many they were in the cache.

    Raises:
        Interrupted: the training was stopped on request, after a checkpoint.
    """
    import torch

    from xgray.train.callbacks import CheckpointReport, PhaseReport
    from xgray.train.deepspeed import leave_deepspeed, start_deepspeed
    from xgray.train.preference_trainer import TrainerFiles
    from xgray.train.trainer import StartingModel, build_trainer

    report_phase = worker.report_phase
    if task.section.execution.strategy != "ddp":
        start_deepspeed(torch.cuda.is_available())
    phases = PhaseReport(
        on_reference=lambda done, total: report_phase(REFERENCE, done, total),
        on_first_step=lambda: report_phase(STEPS),
    )
    tracked = TrackedRun(worker.job.output, task.identity(worker.job.output), newest.step if newest else 0)
    trackers = tracker_callbacks(task.section.execution.trackers, tracked) if worker.rank == 0 else []
    checkpointing = CheckpointReport(
        worker.save,
        worker.is_stop_requested,
        worker.is_node_leaving,
        60 * task.section.execution.checkpoint_minutes,
    )
    with _reference_turn(worker, task, prepared):
        trainer = build_trainer(
            StartingModel(task.model, task.revision, tokenizer),
            task.section,
            prepared,
            TrainerFiles(task.cache, worker.scratch / "work", worker.metrics.path, worker.writer),
            task.seed,
            callbacks=[phases, checkpointing, *trackers],
        )
    counts = trainer.num_reference_computed, trainer.num_reference_reused
    trainer.train(resume_from_checkpoint=str(worker.checkpoints.path(newest.name, worker.scratch)) if newest else None)
    if checkpointing.interrupted:
        raise Interrupted
    del trainer
    leave_deepspeed()
    return counts


@contextmanager
def _reference_turn(worker: Worker, task: PreferenceTask, prepared: PreparedPairs) -> Iterator[None]:
    """Wait while a training beside this one computes the reference; every worker calls this.

    Raises:
        Interrupted: the training was stopped on request.
    """
    from xgray.train.reference_turn import reference_turn

    def while_waiting() -> None:
        worker.report_phase(WAITING)
        if worker.is_stop_requested():
            raise Interrupted

    with ExitStack() as turn:
        is_stopped = False
        if worker.rank == 0:
            try:
                turn.enter_context(reference_turn(task.cache, reference_pairs(prepared, task.section), while_waiting))
            except Interrupted:
                is_stopped = True
        if worker.agree(is_stopped):
            raise Interrupted
        yield


def _export(worker: Worker, task: PreferenceTask) -> dict[str, Any]:
    """Write the weights of the best checkpoint, and return a summary of the training.

    Raises:
        StageError: the best checkpoint is damaged.
    """
    best, source = worker.best()
    output = worker.job.output
    export(task.model, task.revision, source, output.local or worker.scratch / "export")
    if output.local is None:
        for folder in sorted((worker.scratch / "export").iterdir()):
            move_with_checksums(folder, output / folder.name)
    worker.metrics.publish()
    return summarize(worker.metrics.path) | {"exported_step": best.step}
