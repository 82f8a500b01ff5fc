"""``xgray scorer train``: fine-tune a classifier, measure it, and write it with its card.

    train_scorer: sources ──▶ texts.parquet, held_out.parquet ──▶ workers: steps ▶ export ▶ agreement ──▶ scorer/

The folder of a training holds ``manifest.json``, ``metrics.jsonl``, ``held_out.parquet`` and ``scorer/``, which the
scorer ``classifier`` takes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xgray.config import Model, Score, ScorerTraining
from xgray.data.scored_texts import source_fingerprint, source_name
from xgray.distributed.cluster import check_shared, cluster_capacity, connect
from xgray.distributed.placement import fit_training, place_training
from xgray.distributed.train_control import EXPORTING, LOADING, MEASURING, STEPS, Phase
from xgray.distributed.training import CHECKPOINTS, Interrupted, TrainingSlot, Worker, run_task
from xgray.errors import InputError
from xgray.models.load import load_config, load_tokenizer, sequence_limit
from xgray.models.revisions import pin_revision
from xgray.models.source import local_weights, model_fingerprint, path_for_workers
from xgray.runs import interrupts
from xgray.runs.attempt_log import log_attempt
from xgray.runs.lease import Lease
from xgray.runs.manifest import FolderState, StageFolder, StageResult, section_payload
from xgray.runs.progress import Meter, OnProgress
from xgray.runs.training_progress import read_training_steps
from xgray.score.trained.agreement import held_out_agreement, score_table, source_agreement
from xgray.score.trained.card import CARD, make_card, score_section, write_card
from xgray.storage.checksums import CONTENTS, move_with_checksums
from xgray.storage.folder import Folder, write_aside
from xgray.train.checkpoints import Checkpoint
from xgray.train.encoder.prepare import FACTS, HELD_OUT, TEXTS, PreparedTexts, prepare_texts, read_texts
from xgray.train.encoder.split import Part
from xgray.train.metrics import summarize

SCORER = "scorer"
"""The folder of the finished scorer, below the training's."""
LABEL = "train"
VERSION = 1
"""Raised when the same file and texts would give another scorer."""
NO_PART_OF_RESULT = {"first_loss", "last_loss", "last_eval_loss", "step_seconds", "tokens_per_second", "tokens"}
"""Entries of a training's summary that the card leaves out: times, and what the exported checkpoint does not show."""


@dataclass(frozen=True)
class ScorerTask:
    """The workers' part of a scorer's training."""

    model: str
    section: ScorerTraining
    fingerprints: dict[str, Any]

    def train(self, worker: Worker) -> dict[str, Any]:
        """See :class:`xgray.distributed.training.Task`."""
        import torch

        worker.report_phase(LOADING)
        task = replace(self, model=local_weights(self.model))
        newest = worker.newest()
        if newest is None or not newest.ends_training:
            _fine_tune(worker, task, newest)
        worker.report_phase(EXPORTING)
        if worker.rank == 0 and not _is_exported(worker.job.output):
            _export(worker, task)
        worker.finish()
        if worker.rank:
            return {}
        summary = summarize(worker.metrics.path)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({worker.job.cpus} threads)"
        return {"counts": {"tokens": summary.pop("tokens")}, "measured": summary, "device": device}


def train_scorer(
    section: ScorerTraining,
    force: bool = False,
    address: str | None = None,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> dict[str, Any]:
    """Fine-tune a scorer, or resume what an earlier call left in the section's output, and return its card.

    Args:
        section: the training.
        force: whether results of another configuration may be replaced.
        address: the Ray cluster to join; by default ``RAY_ADDRESS``, or a local one.
        on_progress: called with what is done.

    Raises:
        BusyError: another driver is at work in the output folder.
        ConflictError: the output folder holds the training of another configuration, and ``force`` is off.
        InputError: the section, a source or the model cannot be trained with.
        StageError: the training failed half-way; the same call resumes it.
    """
    pinned = pin_revision(Model(id=section.model.id, revision=section.model.revision))
    revision = {"revision": pinned.revision}
    section = section.model_copy(update={"model": section.model.model_copy(update=revision)})
    check_length(section)
    sources = {source_name(source): source_fingerprint(source) for source in section.sources}
    fingerprints = {"model": model_fingerprint(pinned), "sources": sources}
    place = StageFolder(Folder(section.output), SCORER)
    payload = training_payload(section, fingerprints)
    if place.state(payload, force) is FolderState.FINISHED:
        _delete_leftovers(place.folder)
        return read_card(place.folder)
    meter = Meter()

    def report(label: str, done: int, total: int, errors: int = 0) -> None:
        meter(label, done, total, errors)
        on_progress(label, done, total, errors)

    with Lease(place.folder, meter.progress), interrupts.interruptible():
        prepared = None if _is_prepared(place, payload, force) else _prepare(section, report)
        place.begin(payload, force)  # after the texts, so that wrong ones are refused before old results are deleted
        if prepared is not None:
            prepared.write(place.folder)
            del prepared
        with log_attempt([place], meter):
            result, interrupted = _run(section, fingerprints, place, address, report)
            place.finish(payload, result)
        _delete_leftovers(place.folder)
        if interrupted:
            raise KeyboardInterrupt
    return read_card(place.folder)


def training_payload(section: ScorerTraining, fingerprints: dict[str, Any]) -> dict[str, Any]:
    """Return what the scorer depends on: the section without its folders, and the fingerprints of its inputs."""
    values = section_payload(section)
    del values["output"]
    for source, stated in zip(values["sources"], section.sources, strict=True):
        source["name"] = source_name(stated)
        del source["path"]
    return {"version": VERSION, "inputs": fingerprints, "section": values}


def check_length(section: ScorerTraining) -> None:
    """Refuse texts longer than the model reads.

    Raises:
        InputError: ``max_length`` is more than that.
    """
    model = Model(id=section.model.id, revision=section.model.revision)
    path = path_for_workers(model)
    tokenizer = load_tokenizer(path, model.revision)
    limit = sequence_limit(load_config(path, model.revision), tokenizer.model_max_length)
    if section.max_length > limit:
        raise InputError(f"max_length: {section.max_length} tokens are more than {model.id} reads ({limit})")


def read_card(output: Folder) -> dict[str, Any]:
    """Return the card of a finished training."""
    card: dict[str, Any] = (output / SCORER).read_mapping(CARD)
    return card


def _delete_leftovers(output: Folder) -> None:
    """Delete what only an unfinished training needs."""
    (output / CHECKPOINTS).delete()
    output.remove(TEXTS)


def _is_prepared(place: StageFolder, payload: dict[str, Any], force: bool) -> bool:
    """Return whether the folder holds the texts of this very training."""
    is_begun = place.state(payload, force) is FolderState.PARTIAL
    return is_begun and place.folder.exists(FACTS) and place.folder.exists(TEXTS)


def _prepare(section: ScorerTraining, on_progress: OnProgress) -> PreparedTexts:
    path = path_for_workers(Model(id=section.model.id, revision=section.model.revision))
    tokenizer = load_tokenizer(path, section.model.revision)
    return prepare_texts(section, tokenizer, lambda done, total: on_progress("texts", done, total))


def _run(
    section: ScorerTraining,
    fingerprints: dict[str, Any],
    place: StageFolder,
    address: str | None,
    on_progress: OnProgress,
) -> tuple[StageResult, bool]:
    """Train, export and measure; return the result, and whether an interrupt came too late."""
    began = time.perf_counter()
    path = path_for_workers(Model(id=section.model.id, revision=section.model.revision))
    on_progress("Ray: starting", 0, 0)
    with connect(address):
        on_progress("Ray: started", 1, 1)
        interrupts.listen()  # Ray has replaced the handler of SIGTERM.
        check_shared(place.folder)
        field, batch_size = "execution.num_workers", section.batch_size
        execution = fit_training(cluster_capacity(), section.execution, lambda number: batch_size % number == 0, field)
        section = section.model_copy(update={"execution": execution})
        slot = TrainingSlot(place_training(cluster_capacity(), section.execution, field))
        task = ScorerTask(path, section, fingerprints)
        try:
            report, interrupted = run_task(
                task, section.execution, place.folder, slot, _phase_reporter(place, on_progress)
            )
        finally:
            _report_steps(place, on_progress)
    sources = place.folder.read_mapping(FACTS)["sources"].values()
    names = ("num_train", "num_validation", "num_test", "num_removed", "num_left_out")
    counts = {name: sum(source[name] for source in sources) for name in names} | report["counts"]
    seconds = time.perf_counter() - began
    return StageResult(counts, report["measured"], device=report["device"], seconds=seconds), interrupted


def _phase_reporter(place: StageFolder, on_progress: OnProgress) -> Callable[[Phase], None]:
    def report(phase: Phase) -> None:
        if phase.name == STEPS:
            with suppress(OSError):  # the storage may answer again a second later
                _report_steps(place, on_progress)
        else:
            on_progress(f"{LABEL}: {phase.name}", phase.done, phase.total)

    return report


def _report_steps(place: StageFolder, on_progress: OnProgress) -> None:
    """Report the optimizer steps that the workers have logged, once they have begun."""
    done, total = read_training_steps(place)
    if total:
        on_progress(LABEL, done, total)


def _fine_tune(worker: Worker, task: ScorerTask, newest: Checkpoint | None) -> None:
    """Train from the newest checkpoint, or from the start, to the end.

    Raises:
        Interrupted: the training was stopped on request, after a checkpoint.
    """
    from xgray.train.encoder.fine_tune import FineTuning, Hooks
    from xgray.train.encoder.model import load_encoder

    section, output = task.section, worker.job.output
    tuning = FineTuning(
        model=load_encoder(task.model, section.model.revision, section.attributes, section.seed),
        section=section,
        train=read_texts(output, Part.TRAIN),
        validation=read_texts(output, Part.VALIDATION),
        scratch=worker.scratch,
        metrics=worker.metrics.path,
        hooks=Hooks(
            on_first_step=lambda: worker.report_phase(STEPS),
            on_checkpoint=worker.save,
            is_stop_requested=worker.is_stop_requested,
            is_node_leaving=worker.is_node_leaving,
        ),
        writer=worker.writer,
    )
    if not tuning.run(worker.checkpoints.path(newest.name, worker.scratch) if newest else None):
        raise Interrupted


def _is_exported(output: Folder) -> bool:
    return (output / SCORER).exists(CARD if output.local is not None else CONTENTS)


def _export(worker: Worker, task: ScorerTask) -> None:
    """Write the best checkpoint as a scorer with its card, whole or not at all.

    Raises:
        StageError: the best checkpoint is damaged.
    """
    import torch

    from xgray.train.encoder.model import export_encoder, load_encoder
    from xgray.train.state import load_weights

    gc.collect()  # what the training held
    torch.cuda.empty_cache()
    section, output = task.section, worker.job.output
    best, source = worker.best()
    worker.metrics.publish()
    measured = summarize(worker.metrics.path) | {"exported_step": best.step}
    summary = {name: value for name, value in measured.items() if name not in NO_PART_OF_RESULT}
    with write_aside((output.local or worker.scratch) / SCORER) as folder:
        folder.mkdir()
        model = load_encoder(task.model, section.model.revision, section.attributes, section.seed)
        load_weights(model, source)
        export_encoder(model, task.model, section.model.revision, section.max_length, folder)
        del model
        write_card(folder, _measured_card(worker, task, summary, folder))
    if output.local is None:
        move_with_checksums(worker.scratch / SCORER, output / SCORER)


def _measured_card(worker: Worker, task: ScorerTask, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Score the held-out texts with the exported scorer, and return its card."""
    from xgray.score.classifier import ClassifierScorer

    section, output = task.section, worker.job.output
    table, facts = output.read_table(HELD_OUT), output.read_mapping(FACTS)
    languages = list(dict.fromkeys(table["language"].to_pylist()))
    card = {"attributes": section.attributes, "languages": languages}
    scorer = ClassifierScorer(Score.model_validate(score_section(card, str(folder))))
    scores = score_table(scorer, table, lambda done, total: worker.report_phase(MEASURING, done, total))
    whole = [source_name(source) for source in section.sources if source.held_out]
    agreement = held_out_agreement(table, scores, whole)
    of_sources = {name: source_agreement(table, scores, name) for name in whole}
    return make_card(section, task.fingerprints, facts, summary, agreement, of_sources)
