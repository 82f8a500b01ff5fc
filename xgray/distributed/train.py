"""Train on Ray Train: start the workers, keep checkpoints, and go on when a worker or the whole run dies.

    driver ──▶ Ray Train ──▶ workers: reference ▶ steps ▶ export ──▶ merged/, adapter/, metrics.jsonl
                                │ ▲
                                ▼ │ checkpoints/

Ray Train starts the workers, and starts them again when one dies. Checkpoints do not go through Ray Train: the first
worker moves each to the output folder, on whatever storage, and workers that start go on from the newest complete one,
however many workers there are. So the same happens after the death of a worker within a run as after the death of the
whole run, when :func:`run_training` is called again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from xgray.config import Model, Train
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.keys import take_keys
from xgray.distributed.placement import describe_resources, place_training
from xgray.distributed.train_control import (
    EXPORTING,
    LOADING,
    REFERENCE,
    STEPS,
    Phase,
    PhaseReporter,
    WorkerLossCallback,
    start_train_control,
)
from xgray.distributed.waiting import log_waiting
from xgray.errors import InputError, StageError, XgrayError
from xgray.models.cache import cache_folder
from xgray.models.load import load_tokenizer
from xgray.models.source import is_adapter, local_weights, path_for_workers
from xgray.rows import PreferencePair
from xgray.runs.library_bars import NO_BARS
from xgray.runs.manifest import StageResult
from xgray.runs.periodic import run_every
from xgray.storage.checksums import move_with_checksums
from xgray.storage.folder import TEMPORARY_MARK, DamagedError, Folder, is_transient
from xgray.train.checkpoints import Checkpoint, Checkpoints
from xgray.train.export import export
from xgray.train.feasible import check_feasible
from xgray.train.metrics import METRICS, summarize
from xgray.train.pairs import PreparedPairs, prepare_pairs
from xgray.train.reference import ReferenceCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
SCRATCH = f"{TEMPORARY_MARK}train-"
"""How the names of the workers' scratch folders begin."""
RESULT = "result.json"
MAX_FAILURES = 3
"""Deaths of workers that a training survives without reaching another checkpoint. With a checkpoint between them it
survives any number, because preemptible nodes may go all night."""
GRACE_SECONDS = 25.0
"""How long an interrupted training has for the step in flight and its checkpoint: Kubernetes gives 30."""
PUBLISH_SECONDS = 5.0
"""How often the metrics are copied to an output folder in an object store, between checkpoints."""
PHASE_SECONDS = 1.0
"""How often the driver reads the workers' phases."""
QUIET = dict.fromkeys(NO_BARS, "1") | {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

CPU = {"DS_ACCELERATOR": "cpu", "THP_MEM_ALLOC_ENABLE": "1"}
"""Huge pages, because each step takes and frees gigabytes, and spent a twentieth of its time on page faults."""


@dataclass(frozen=True)
class TrainingJob:
    """What every worker of a training needs."""

    model: str
    revision: str | None
    section: Train
    pairs: Sequence[PreferencePair]
    seed: int
    output: Folder
    cache: ReferenceCache
    cpus: int
    control: Any
    """The handle of the :class:`xgray.distributed.train_control.TrainControl` of this training."""

    def scratch(self, rank: int) -> Path:
        """Return a folder for one worker: on the output's disk, so that checkpoints can be moved, or in the cache."""
        if self.output.local is not None:
            return self.output.local / f"{SCRATCH}{rank}"
        name = hashlib.sha256(self.output.uri.encode()).hexdigest()[:16]
        return cache_folder() / "training" / f"{name}-{rank}"


class Interrupted(Exception):
    """The workers stopped on request, after a checkpoint."""


def run_training(
    model: Model,
    section: Train,
    pairs: Sequence[PreferencePair],
    seed: int,
    output: Folder,
    *,
    reference_fingerprint: str,
    on_phase: Callable[[Phase], None] = lambda phase: None,
) -> StageResult:
    """Tune ``model`` on ``pairs``, or resume what an earlier call with the same arguments left in ``output``.

    Leaves ``metrics.jsonl``, ``merged/`` and, for an adapter, ``adapter/``: the best checkpoint by validation loss, or
    the last one if nothing is held out. Ray must be up. After a ``KeyboardInterrupt``, which the command line also
    raises at SIGTERM, the workers have ``GRACE_SECONDS`` to save the step in flight; a second one does not wait.

    Args:
        seed: of the split, the order and the adapter's start.
        output: a folder that all nodes mount under the same path, or any URI.
        reference_fingerprint: of the model's weights, see :func:`xgray.models.source.model_fingerprint`.
        on_phase: called once a second with each phase that has begun since the workers started, mostly in a thread.

    Raises:
        InputError: the section, the pairs or the model cannot be trained with.
        StageError: the training failed half-way; calling again resumes from the last checkpoint.
    """
    began = time.perf_counter()
    if output.exists(RESULT):
        return StageResult(**output.read_json(RESULT))
    gpu, cpus = place_training(cluster_capacity(), section.execution)
    check_feasible(section, gpu)
    base = _base_model(model)
    cache = ReferenceCache.of(section, reference_fingerprint, str(cache_folder()))
    control = start_train_control()
    job = TrainingJob(base, model.revision, section, pairs, seed, output, cache, cpus, control)
    try:
        report, interrupted = _fit_watched(job, gpu, on_phase)
    finally:
        ray.kill(control)
    if output.local is not None:
        for leftover in output.local.glob(f"{SCRATCH}*"):  # of killed workers, which may have been more than now
            shutil.rmtree(leftover, ignore_errors=True)
    result = StageResult(
        report["counts"], report["measured"], device=report["device"], seconds=time.perf_counter() - began
    )
    output.write_json(RESULT, asdict(result))
    (output / CHECKPOINTS).delete()
    if interrupted:
        raise KeyboardInterrupt
    return result


def _base_model(model: Model) -> str:
    """Return the model's path as the workers load it.

    Raises:
        InputError: it is an adapter.
    """
    base = path_for_workers(model)
    if Path(base).is_dir() and is_adapter(base):
        raise InputError(f"model.id: {base} is an adapter. Name a whole model, from which tuning can begin.")
    return base


def _fit_watched(job: TrainingJob, gpu: bool, on_phase: Callable[[Phase], None]) -> tuple[dict[str, Any], bool]:
    """As :func:`_fit_interruptible`, while phases are reported and a lack of room for the workers is logged."""
    workers = f"{job.section.execution.num_workers} workers of {describe_resources(job.cpus, int(gpu))}"

    def waiting_for() -> str | None:
        return f"train: waiting for room for {workers}" if ray.get(job.control.is_waiting.remote()) else None

    def report_phases() -> None:
        for phase in ray.get(job.control.phases.remote()):
            on_phase(phase)

    report_phases()
    with log_waiting(waiting_for), run_every(PHASE_SECONDS, report_phases):
        fitted = _fit_interruptible(job, gpu)
    report_phases()
    return fitted


def _fit_interruptible(job: TrainingJob, gpu: bool) -> tuple[dict[str, Any], bool]:
    """Return the first worker's report, and whether an interrupt came too late to stop the training before its end.

    Ray Train runs in a thread: in the main thread it would answer Ctrl-C by killing the workers and ending the program
    as if nothing had failed.
    """
    answer: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            answer.set_result(_fit(job, gpu))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(), False
    except Interrupted:
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        log.info("train: interrupted; saving a checkpoint at the end of this step")
        job.control.stop.remote()
        with suppress(TimeoutError, XgrayError):
            try:
                return answer.result(GRACE_SECONDS), True
            except Interrupted:
                log.info("train: the checkpoint is saved; run the same command again to go on from it")
        raise


def _fit(job: TrainingJob, gpu: bool) -> dict[str, Any]:
    """Train until the end, and return the first worker's report.

    Raises:
        Interrupted: the training was stopped on request.
        XgrayError: a worker returned it.
        StageError: workers died ``MAX_FAILURES`` times without reaching another checkpoint.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    checkpoints = Checkpoints(job.output / CHECKPOINTS)
    while True:
        step_before = _newest_step(checkpoints)
        try:
            report = _trainer(job, gpu).fit().return_value
        except TrainingFailedError as error:
            reason = str(error).strip().splitlines()[-1]
            step = _newest_step(checkpoints)
            if step == step_before:
                raise StageError(
                    f"train: {reason}. Run the same command again to resume from the last checkpoint."
                ) from error
            log.warning("train: %s; going on from step %d", reason, step)
        else:
            break
    if isinstance(report, Exception):
        raise report
    return report


def _newest_step(checkpoints: Checkpoints) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max((checkpoint.step for checkpoint in checkpoints.saved()), default=0)


def _trainer(job: TrainingJob, gpu: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    execution = job.section.execution
    return TorchTrainer(
        _run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=gpu, resources_per_worker={"CPU": job.cpus}
        ),
        run_config=RunConfig(
            storage_path=str(cache_folder() / "ray"),  # for Ray Train's own marks, which no other node reads
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[WorkerLossCallback(job.control)],
            # Workers of one training share no cores, so their threads may wait busily: compared with a plain script a
            # step took 1.09 times as long so, and 1.23 times as long when they slept.
            worker_runtime_env={"env_vars": QUIET if gpu else QUIET | CPU | {"OMP_NUM_THREADS": str(job.cpus)}},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _run_worker(config: dict[str, Any]) -> dict[str, Any] | Exception:
    """Run one worker. Errors for the user are returned: raised ones would count as deaths and be tried again."""
    import torch
    from safetensors import SafetensorError

    job: TrainingJob = config["job"]
    _, failure = ray.get(job.control.orders.remote())
    if failure is not None:
        return failure
    take_keys()
    torch.set_num_threads(job.cpus)
    if job.section.execution.num_workers == 1 and job.section.execution.strategy == "ddp":
        # Without a rank accelerate leaves DDP out, which for a single worker would only copy every gradient.
        os.environ.pop("LOCAL_RANK")
    _configure_logging()
    try:
        return _train(job)
    except Interrupted as error:
        return error
    except (XgrayError, OSError, SafetensorError) as error:
        failure = error if isinstance(error, XgrayError) else _permanent_file_error(error)
        if failure is None:
            raise  # transient, so that Ray Train tries again
        if job.section.execution.num_workers == 1:
            return failure
        # The other workers wait for this one, so its process must die.
        ray.get(job.control.fail.remote(failure))
        raise


def _configure_logging() -> None:
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logger = logging.getLogger("xgray")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _permanent_file_error(error: Exception) -> StageError | None:
    """Return a StageError for a permanent file error, None for a transient one."""
    if is_transient(error):
        return None
    return StageError(f"train: {str(error).splitlines()[0]}. Fix this and run the same command again to go on.")


@dataclass
class _Worker:
    """The state of one worker."""

    job: TrainingJob
    rank: int
    scratch: Path
    metrics: Metrics
    checkpoints: Checkpoints
    report_phase: PhaseReporter
    leaving_nodes: set[str] = field(default_factory=set)

    @classmethod
    def start(cls, job: TrainingJob, rank: int, report_phase: PhaseReporter) -> _Worker:
        """Return a worker with an empty scratch folder."""
        scratch = job.scratch(rank)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return cls(
            job,
            rank,
            scratch,
            Metrics(job.output, scratch),
            Checkpoints(job.output / CHECKPOINTS),
            report_phase,
        )

    def save(self, folder: Path, step: int, score: float | None, finished: bool) -> None:
        """Publish the metrics and a checkpoint; the first worker does."""
        if self.rank == 0:
            self.metrics.publish()
            self.checkpoints.add(folder, step, score, finished)

    def is_stop_requested(self) -> bool:
        """Return whether the driver asks for a stop; publishes the metrics if it is time to."""
        self.metrics.publish(every=PUBLISH_SECONDS)
        stop, _ = ray.get(self.job.control.orders.remote())
        return bool(stop)

    def is_node_leaving(self) -> bool:
        """Return whether a node is about to be taken away; True once for each node."""
        import ray.train

        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - self.leaving_nodes if info else set()
        self.leaving_nodes |= new
        if new and self.rank == 0:
            log.info("train: a node is about to be taken away; saving this step")
        return bool(new)


def _train(job: TrainingJob) -> dict[str, Any]:
    """Train as one of the workers; the first one exports the weights and returns the report."""
    import ray.train
    import torch
    from ray.train.collective import barrier, broadcast_from_rank_zero

    rank = ray.train.get_context().get_world_rank()
    report_phase = PhaseReporter(job.control, rank)
    report_phase(LOADING)
    job = replace(job, model=local_weights(job.model))
    worker = _Worker.start(job, rank, report_phase)
    tokenizer = load_tokenizer(job.model, job.revision)
    prepared = prepare_pairs(job.pairs, tokenizer, job.section, job.seed)
    newest = broadcast_from_rank_zero(worker.checkpoints.newest(worker.scratch) if rank == 0 else None)
    if newest is None or not newest.ends_training:
        num_computed, num_reused = _run_trainer(worker, prepared, tokenizer, newest)
    else:
        num_computed, num_reused = 0, len(prepared.train) + len(prepared.validation)
    report_phase(EXPORTING)
    summary = _export(worker) if rank == 0 else {}
    barrier()
    report_phase(EXPORTING, 1, 1)
    shutil.rmtree(worker.scratch, ignore_errors=True)
    if rank:
        return {}
    counts = {
        "num_pairs": prepared.num_pairs,
        "num_train": len(prepared.train),
        "num_validation": len(prepared.validation),
        "num_dropped": prepared.num_dropped,
        "num_truncated": prepared.num_truncated,
        "num_reference_computed": num_computed,
        "num_reference_reused": num_reused,
        "tokens": summary.pop("tokens"),
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({job.cpus} threads)"
    return {"counts": counts, "measured": summary, "device": device}


def _run_trainer(
    worker: _Worker, prepared: PreparedPairs, tokenizer: PreTrainedTokenizerBase, newest: Checkpoint | None
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
    from xgray.train.trainer import StartingModel, TrainerFiles, build_trainer

    job, report_phase = worker.job, worker.report_phase
    if job.section.execution.strategy != "ddp":
        start_deepspeed(torch.cuda.is_available())
    phases = PhaseReport(
        on_reference=lambda done, total: report_phase(REFERENCE, done, total),
        on_first_step=lambda: report_phase(STEPS),
    )
    checkpointing = CheckpointReport(worker.save, worker.is_stop_requested, worker.is_node_leaving)
    trainer = build_trainer(
        StartingModel(job.model, job.revision, tokenizer),
        job.section,
        prepared,
        TrainerFiles(job.cache, worker.scratch / "work", worker.metrics.path),
        job.seed,
        callbacks=[phases, checkpointing],
    )
    counts = trainer.num_reference_computed, trainer.num_reference_reused
    trainer.train(resume_from_checkpoint=str(worker.checkpoints.path(newest.name, worker.scratch)) if newest else None)
    if checkpointing.interrupted:
        raise Interrupted
    del trainer
    leave_deepspeed()
    return counts


def _export(worker: _Worker) -> dict[str, Any]:
    """Write the weights of the best checkpoint, and return a summary of the training.

    Raises:
        StageError: the best checkpoint is damaged.
    """
    job, checkpoints = worker.job, worker.checkpoints
    best = checkpoints.best(checkpoints.saved())
    assert best is not None  # the last step's checkpoint has a score
    try:
        source = checkpoints.path(best.name, worker.scratch)
    except DamagedError as error:
        raise StageError(
            f"train: the best checkpoint is damaged ({error}). Delete {checkpoints.folder} and run the same command "
            "again, which trains from the start."
        ) from None
    export(job.model, job.revision, source, job.output.local or worker.scratch / "export")
    if job.output.local is None:
        for folder in sorted((worker.scratch / "export").iterdir()):
            move_with_checksums(folder, job.output / folder.name)
    worker.metrics.publish()
    return summarize(worker.metrics.path) | {"exported_step": best.step}


class Metrics:
    """``metrics.jsonl``: written in the output folder itself if that is on a disk, and copied to an object store."""

    def __init__(self, output: Folder, scratch: Path) -> None:
        self.output = output
        self.path = (output.local or scratch) / METRICS
        self._published = time.monotonic()
        if output.local is None and output.exists(METRICS):
            output.fetch(METRICS, self.path)

    def publish(self, every: float = 0.0) -> None:
        """Copy the file to the object store, if the last copy is at least ``every`` seconds old."""
        if self.output.local is None and self.path.exists() and time.monotonic() - self._published >= every:
            self.output.write_bytes(METRICS, self.path.read_bytes())
            self._published = time.monotonic()
