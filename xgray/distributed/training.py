"""Run a training on Ray: start the workers, keep checkpoints, and go on when a worker or the whole run dies.

    driver ──▶ Ray Train ──▶ workers: Task.train ──▶ the output folder: what the task exports, metrics.jsonl
                                │ ▲
                                ▼ │ checkpoints/

Ray Train starts the workers, and starts them again when one dies. A single worker of a local Ray is a Ray task instead:
it needs none of the five actors by which Ray Train connects and watches workers, and each of them would stop the
training's threads a hundred times a second. Checkpoints do not go through Ray Train: the first worker moves each to the
output folder, on whatever storage, and workers that start go on from the newest complete one, however many workers
there are. So the same happens after the death of a worker within a run as after the death of the whole run, when
:func:`run_task` is called again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray

from xgray.config import TrainingWorkers
from xgray.distributed.connection import check_connected
from xgray.distributed.keys import take_keys
from xgray.distributed.local_ray import is_local
from xgray.distributed.placement import WorkerShare, describe_resources
from xgray.distributed.train_control import Phase, PhaseReporter, WorkerLossCallback, start_train_control
from xgray.distributed.waiting import log_waiting
from xgray.errors import DivergedError, StageError, XgrayError
from xgray.models.cache import cache_folder
from xgray.runs.library_bars import NO_BARS
from xgray.runs.periodic import run_every
from xgray.storage.folder import TEMPORARY_MARK, DamagedError, Folder, is_transient
from xgray.train.background import BackgroundWriter
from xgray.train.checkpoints import Checkpoint, Checkpoints
from xgray.train.metrics import METRICS

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECKPOINTS = "checkpoints"
DIVERGED = "diverged.txt"
"""Says why a training ended whose loss or gradient was no number, so that it is not begun again unnoticed."""
SCRATCH = f"{TEMPORARY_MARK}train-"
"""How the names of the workers' scratch folders begin."""
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

CPU = {"DS_ACCELERATOR": "cpu"}


class Task(Protocol):
    """What the workers do; it is sent to each of them."""

    def train(self, worker: Worker) -> dict[str, Any]:
        """Train as one of the workers, from ``worker.newest()`` on, and export the result on the first.

        Returns:
            The first worker's report; other workers' answers are not looked at.

        Raises:
            Interrupted: the training was stopped on request, after a checkpoint.
        """
        ...


@dataclass(frozen=True)
class TrainingSlot:
    """The place of a training on the cluster, where others may run beside it."""

    share: WorkerShare
    label: str = "train"
    """What messages call the training."""
    stop: Future[None] = field(default_factory=Future)
    """Set when the training is to save its step and stop; in the main thread ``KeyboardInterrupt`` says so too."""


@dataclass(frozen=True)
class TrainingJob:
    """What every worker of a training needs."""

    task: Task
    execution: TrainingWorkers
    output: Folder
    cpus: int
    control: Any
    """The handle of the :class:`xgray.distributed.train_control.TrainControl` of this training."""
    uses_ray_train: bool
    """Whether the workers are Ray Train's; otherwise the only one is a Ray task."""

    def scratch(self, rank: int) -> Path:
        """Return a folder for one worker: on the output's disk, so that checkpoints can be moved, or in the cache."""
        if self.output.local is not None:
            return self.output.local / f"{SCRATCH}{rank}"
        name = hashlib.sha256(self.output.uri.encode()).hexdigest()[:16]
        return cache_folder() / "training" / f"{name}-{rank}"


class Interrupted(Exception):
    """The workers stopped on request, after a checkpoint."""


class WorkersDied(Exception):
    """Workers died, or an error ended them that may not come again."""


def run_task(
    task: Task,
    execution: TrainingWorkers,
    output: Folder,
    slot: TrainingSlot,
    on_phase: Callable[[Phase], None],
) -> tuple[dict[str, Any], bool]:
    """Train to the end, from what an earlier call has left in ``output``. Ray must be up.

    After a ``KeyboardInterrupt``, which the command line also raises at SIGTERM, or when ``slot.stop`` is set, the
    workers have ``GRACE_SECONDS`` to save the step in flight; a second interrupt does not wait. The caller deletes
    ``output/checkpoints`` when it has noted the result.

    Args:
        task: what the workers do.
        execution: how many workers there are, and what they take.
        output: a folder that all nodes mount under the same path, or any URI.
        slot: what each worker takes; see :func:`xgray.distributed.placement.place_training`.
        on_phase: called once a second with each phase that has begun since the workers started, mostly in a thread.

    Returns:
        The first worker's report, and whether an interrupt came too late to stop the training before its end.

    Raises:
        KeyboardInterrupt: the training was stopped before its end.
        XgrayError: a worker raised it.
        DivergedError: a loss or gradient was no number, now or in an earlier call: training would end there again.
        StageError: the training failed half-way; calling again resumes from the last checkpoint.
    """
    if output.exists(DIVERGED):
        again = f"To train with the same fields once more, delete {output / DIVERGED}"
        raise DivergedError(f"{output.read_bytes(DIVERGED).decode(errors='replace').strip()}. {again}")
    control = start_train_control()
    # The nodes of a cluster may be taken away, which Ray Train notices.
    uses_ray_train = not (execution.is_single_process and is_local())
    job = TrainingJob(task, execution, output, slot.share.cpus, control, uses_ray_train)
    try:
        fitted = _fit_watched(job, slot, on_phase)
    except DivergedError as error:
        output.write_bytes(DIVERGED, f"{error}\n".encode())
        raise
    finally:
        ray.kill(control)
    if output.local is not None:
        for leftover in output.local.glob(f"{SCRATCH}*"):  # of killed workers, which may have been more than now
            shutil.rmtree(leftover, ignore_errors=True)
    return fitted


def _fit_watched(
    job: TrainingJob, slot: TrainingSlot, on_phase: Callable[[Phase], None]
) -> tuple[dict[str, Any], bool]:
    """As :func:`_fit_interruptible`, while phases are reported and a lack of room for the workers is logged."""
    workers = f"{job.execution.num_workers} workers of {describe_resources(job.cpus, slot.share.gpus)}"

    def waiting_for() -> str | None:
        return f"{slot.label}: waiting for room for {workers}" if ray.get(job.control.is_waiting.remote()) else None

    def report_phases() -> None:
        for phase in ray.get(job.control.phases.remote()):
            on_phase(phase)

    report_phases()
    with log_waiting(waiting_for), run_every(PHASE_SECONDS, report_phases):
        fitted = _fit_interruptible(job, slot)
    report_phases()
    return fitted


def _fit_interruptible(job: TrainingJob, slot: TrainingSlot) -> tuple[dict[str, Any], bool]:
    """Return the first worker's report, and whether an interrupt came too late to stop the training before its end.

    Ray Train runs in a thread: in the main thread it would answer Ctrl-C by killing the workers and ending the program
    as if nothing had failed.
    """
    answer: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            answer.set_result(_fit(job, slot))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        either: list[Future[Any]] = [answer, slot.stop]
        wait(either, return_when=FIRST_COMPLETED)
        if not answer.done():
            raise KeyboardInterrupt
        return answer.result(), False
    except Interrupted:
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        log.info("%s: interrupted; saving a checkpoint at the end of this step", slot.label)
        job.control.stop.remote()
        with suppress(TimeoutError, XgrayError):
            try:
                return answer.result(GRACE_SECONDS), True
            except Interrupted:
                log.info("%s: the checkpoint is saved; run the same command again to go on from it", slot.label)
        raise


def _fit(job: TrainingJob, slot: TrainingSlot) -> dict[str, Any]:
    """Train until the end, and return the first worker's report.

    Raises:
        Interrupted: the training was stopped on request.
        XgrayError: a worker returned it.
        StageError: workers died ``MAX_FAILURES`` times without reaching another checkpoint.
    """
    run_workers, num_tries = (_run_with_ray_train, 1) if job.uses_ray_train else (_run_as_task, MAX_FAILURES + 1)
    checkpoints = Checkpoints(job.output / CHECKPOINTS)
    num_failed = 0
    while True:
        step_before = _newest_step(checkpoints)
        try:
            report = run_workers(job, slot.share.gpus)
        except WorkersDied as error:
            step = _newest_step(checkpoints)
            num_failed = num_failed + 1 if step == step_before else 0
            if num_failed == num_tries:
                raise StageError(
                    f"{slot.label}: {error}. Run the same command again to resume from the last checkpoint."
                ) from error
            log.warning("%s: %s; going on from step %d", slot.label, error, step)
        else:
            break
    if isinstance(report, Exception):
        raise report
    return report


def _newest_step(checkpoints: Checkpoints) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    return max((checkpoint.step for checkpoint in checkpoints.saved()), default=0)


def _run_as_task(job: TrainingJob, gpus: float) -> dict[str, Any] | Exception:
    """Run the only worker as a Ray task, once, and return its report.

    Raises:
        WorkersDied: it died.
    """
    worker = ray.remote(
        name="TrainWorker",
        num_cpus=job.cpus,
        num_gpus=gpus,
        runtime_env={"env_vars": _worker_environment(job, gpus)},
        max_retries=0,
        max_calls=1,  # the process ends with the training, and its memory is free
    )(_run_worker)
    try:
        report: dict[str, Any] | Exception = ray.get(worker.remote({"job": job}))
    except ray.exceptions.RayError as error:
        ray.get(job.control.workers_lost.remote())
        raise WorkersDied(_last_line(error)) from error
    return report


def _run_with_ray_train(job: TrainingJob, gpus: float) -> dict[str, Any] | Exception:
    """Run the workers with Ray Train, which starts them again ``MAX_FAILURES`` times; return the first's report.

    Raises:
        WorkersDied: they died once more.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = {"CPU": job.cpus, **({"GPU": gpus} if gpus else {})}
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.execution.num_workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,  # by default the second, which trainings that begin together share
            storage_path=str(cache_folder() / "ray"),  # for Ray Train's own marks, which no other node reads
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[WorkerLossCallback(job.control)],
            worker_runtime_env={"env_vars": _worker_environment(job, gpus)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        report: dict[str, Any] | Exception = trainer.fit().return_value
    except TrainingFailedError as error:
        raise WorkersDied(_last_line(error)) from error
    return report


def _worker_environment(job: TrainingJob, gpus: float) -> dict[str, str]:
    # Workers of one training share no cores, so their threads may wait busily: compared with a plain script a step took
    # 1.09 times as long so, and 1.23 times as long when they slept.
    return QUIET if gpus else QUIET | CPU | {"OMP_NUM_THREADS": str(job.cpus)}


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removesuffix(".")


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
    _configure_logging()
    try:
        if job.execution.num_workers > 1:
            from ray.train.torch import get_device

            check_connected(get_device())
        return job.task.train(Worker.start(job))
    except Interrupted as error:
        return error
    except (XgrayError, OSError, SafetensorError) as error:
        failure = error if isinstance(error, XgrayError) else _permanent_file_error(error)
        if failure is None:
            raise  # transient, so that it is tried again
        if job.execution.num_workers == 1:
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
class Worker:
    """One worker of a training: its files, and how it reaches the driver."""

    job: TrainingJob
    rank: int
    scratch: Path
    metrics: Metrics
    checkpoints: Checkpoints
    report_phase: PhaseReporter
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    leaving_nodes: set[str] = field(default_factory=set)

    @classmethod
    def start(cls, job: TrainingJob) -> Worker:
        """Return this process's worker, with an empty scratch folder."""
        rank = 0
        if job.uses_ray_train:
            from ray.train import get_context

            rank = get_context().get_world_rank()
        scratch = job.scratch(rank)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        metrics, checkpoints = Metrics(job.output, scratch), Checkpoints(job.output / CHECKPOINTS)
        return cls(job, rank, scratch, metrics, checkpoints, PhaseReporter(job.control, rank))

    def newest(self) -> Checkpoint | None:
        """Return the checkpoint that all workers go on from; every worker calls this."""
        return self.agree(self.checkpoints.newest(self.scratch) if self.rank == 0 else None)

    def agree(self, value: T) -> T:
        """Return the first worker's value; every worker calls this."""
        if self.job.execution.num_workers == 1:
            return value
        from ray.train.collective import broadcast_from_rank_zero

        agreed: T = broadcast_from_rank_zero(value)
        return agreed

    def best(self) -> tuple[Checkpoint, Path]:
        """Return the best checkpoint of a training that has come to its end, and its local folder.

        Raises:
            StageError: the best checkpoint is damaged.
        """
        best = self.checkpoints.best(self.checkpoints.saved())
        assert best is not None  # the last step's checkpoint has a score
        try:
            return best, self.checkpoints.path(best.name, self.scratch)
        except DamagedError as error:
            raise StageError(
                f"train: the best checkpoint is damaged ({error}). Delete {self.checkpoints.folder} and run the same "
                "command again, which trains from the start."
            ) from None

    def finish(self) -> None:
        """Wait for all workers, and delete the scratch folder; every worker calls this last."""
        if self.job.execution.num_workers > 1:
            from ray.train.collective import barrier

            barrier()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def save(self, folder: Path, step: int, score: float | None, finished: bool) -> None:
        """Publish the metrics and a checkpoint, as soon as it is written; the first worker does."""

        def publish() -> None:
            self.metrics.publish()
            self.checkpoints.add(folder, step, score, finished)

        if self.rank == 0:
            self.writer.submit(publish)

    def is_stop_requested(self) -> bool:
        """Return whether the driver asks for a stop; publishes the metrics if it is time to.

        Raises:
            OSError: a checkpoint could not be written.
        """
        self.writer.check()
        self.metrics.publish(every=PUBLISH_SECONDS)
        stop, _ = ray.get(self.job.control.orders.remote())
        return bool(stop)

    def is_node_leaving(self) -> bool:
        """Return whether a node is about to be taken away; True once for each node."""
        if not self.job.uses_ray_train:
            return False
        from ray.train import get_preemption_info

        info = get_preemption_info()
        new = set(info.preempted_node_ids) - self.leaving_nodes if info else set()
        self.leaving_nodes |= new
        if new and self.rank == 0:
            log.info("train: a node is about to be taken away; saving this step")
        return bool(new)


class Metrics:
    """``metrics.jsonl``: written in the output folder itself if that is on a disk, and copied to an object store."""

    def __init__(self, output: Folder, scratch: Path) -> None:
        self.output = output
        self.path = (output.local or scratch) / METRICS
        self._published = time.monotonic()
        self._publishing = threading.Lock()  # so that no older copy replaces a newer one
        if output.local is None and output.exists(METRICS):
            output.fetch(METRICS, self.path)

    def publish(self, every: float = 0.0) -> None:
        """Copy the file to the object store, if the last copy is at least ``every`` seconds old."""
        if self.output.local is not None or time.monotonic() - self._published < every:
            return
        with self._publishing:
            if self.path.exists():
                self.output.write_bytes(METRICS, self.path.read_bytes())
                self._published = time.monotonic()
