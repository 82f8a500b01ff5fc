"""Training on Ray Train: workers, their resources, checkpoints and what happens when one of them dies.

Ray Train starts the workers, and starts them again when one dies. The checkpoints are ours: the first worker moves each
to the output folder, wherever that is, and workers that start take the newest that is whole, however many they are. So
the same holds after the death of a worker within the run, and after that of all of it when :func:`run_training` is
called again.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from xgray.config import Model, Train
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.keys import take_keys
from xgray.distributed.placement import describe_resources, place_training
from xgray.distributed.train_control import Losses, open_line
from xgray.distributed.waiting import log_waiting
from xgray.errors import InputError, StageError, XgrayError
from xgray.models.cache import cache_folder
from xgray.models.load import load_tokenizer
from xgray.models.source import is_adapter, local_weights, path_for_workers
from xgray.rows import PreferencePair
from xgray.runs.manifest import StageResult
from xgray.storage.checksums import move_with_checksums
from xgray.storage.folder import TEMPORARY_MARK, DamagedError, Folder, is_transient
from xgray.train.checkpoints import Checkpoints
from xgray.train.export import export
from xgray.train.feasible import check_feasible
from xgray.train.metrics import METRICS, summarize
from xgray.train.pairs import prepare_pairs
from xgray.train.reference import ReferenceCache

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RESULT = "result.json"
MAX_FAILURES = 3
"""Deaths of workers that a training survives by itself without getting on to another checkpoint. With checkpoints
between them it survives any number: preemptible nodes go all night."""
GRACE_SECONDS = 25.0
"""How long an interrupted training has for the step in flight and its checkpoint: Kubernetes gives 30."""
PUBLISH_SECONDS = 5.0
"""How often the metrics go to an output folder that is no disk, between checkpoints."""
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

CPU = {"DS_ACCELERATOR": "cpu", "THP_MEM_ALLOC_ENABLE": "1"}
"""Huge pages: each step takes and gives back gigabytes, and a twentieth of its time went on page faults."""


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    model: str
    revision: str | None
    section: Train
    pairs: Sequence[PreferencePair]
    seed: int
    output: Folder
    cache: ReferenceCache
    cpus: int
    line: Any
    """The actor that the driver and the workers reach each other by: :class:`xgray.distributed.train_control.TrainControl`."""

    def scratch(self, rank: int) -> Path:
        """A worker's own folder: on the output's disk, so that checkpoints need not be copied, or in the cache."""
        if self.output.local is not None:
            return self.output.local / f"{TEMPORARY_MARK}train-{rank}"
        name = hashlib.sha256(self.output.uri.encode()).hexdigest()[:16]
        return cache_folder() / "training" / f"{name}-{rank}"


class Interrupted(Exception):
    """The workers stopped because they were asked to, after a checkpoint."""


def run_training(
    model: Model,
    section: Train,
    pairs: Sequence[PreferencePair],
    seed: int,
    output: Folder,
    *,
    reference_fingerprint: str,
) -> StageResult:
    """Tune ``model`` on ``pairs``; resumes what an earlier call with the same arguments left in ``output``.

    Leaves ``metrics.jsonl``, ``merged/`` and, for an adapter, ``adapter/``: the best checkpoint by validation loss, or
    the last one where nothing is held out. Ray must be initialised. A ``KeyboardInterrupt``, which is also what the
    command line makes of SIGTERM, lets the workers save the step in flight, for ``GRACE_SECONDS`` at most; a second one
    does not.

    Args:
        seed: Seed of the split, the order and the adapter's start, where the section names none.
        output: A folder that all nodes mount under the same path, or any URI.
        reference_fingerprint: Of the model's weights, see :func:`xgray.models.source.model_fingerprint`.

    Raises:
        InputError: the section, the pairs or the model cannot be trained with.
        StageError: the training failed half-way; calling again resumes from the last checkpoint.
    """
    began = time.perf_counter()
    if output.exists(RESULT):
        return StageResult(**output.read_json(RESULT))
    gpu, cpus = place_training(cluster_capacity(), section.execution)
    check_feasible(section, gpu)
    base = path_for_workers(model)
    if Path(base).is_dir():
        base = str(Path(base).absolute())
        if is_adapter(base):
            raise InputError(f"model.id: {base} is an adapter; tuning begins with a whole model")
    line = open_line()
    job = Job(
        model=base,
        revision=model.revision,
        section=section,
        pairs=pairs,
        seed=seed if section.seed is None else section.seed,
        output=output,
        cache=ReferenceCache.of(section, reference_fingerprint, str(cache_folder())),
        cpus=cpus,
        line=line,
    )
    asked = f"{section.execution.num_workers} workers of {describe_resources(cpus, int(gpu))}"

    def missing() -> str | None:
        return f"train: waiting for room for {asked}" if ray.get(line.waiting.remote()) else None

    try:
        with log_waiting(missing):
            told, interrupted = _interruptible(lambda: _fit(job, gpu), line)
    finally:
        ray.kill(line)
    result = StageResult(
        counts=told["counts"], measured=told["measured"], device=told["device"], seconds=time.perf_counter() - began
    )
    output.write_json(RESULT, asdict(result))
    (output / CHECKPOINTS).delete()
    if interrupted:
        raise KeyboardInterrupt
    return result


def _interruptible(fit: Callable[[], dict[str, Any]], line: Any) -> tuple[dict[str, Any], bool]:
    """What ``fit`` returns, and whether an interrupt came too late to keep it from its end.

    It runs in a thread: in the main one Ray Train would answer Ctrl-C by killing the workers and leaving the program as
    if all were well.
    """
    answer: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            answer.set_result(fit())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(), False
    except Interrupted:
        raise KeyboardInterrupt from None
    except KeyboardInterrupt:
        log.info("train: interrupted; saving a checkpoint at the end of this step")
        line.stop.remote()
        with suppress(TimeoutError, XgrayError):
            try:
                return answer.result(GRACE_SECONDS), True
            except Interrupted:
                log.info("train: the checkpoint is saved; the same command goes on from it")
        raise


def _fit(job: Job, gpu: bool) -> dict[str, Any]:
    """What the first worker says of the finished training."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    checkpoints = Checkpoints(job.output / CHECKPOINTS)
    while True:
        reached = _step(checkpoints)
        try:
            told = _trainer(job, gpu).fit().return_value
        except TrainingFailedError as error:
            last = str(error).strip().splitlines()[-1]
            if _step(checkpoints) == reached:
                raise StageError(f"train: {last}; the same command resumes from the last checkpoint") from error
            log.warning("train: %s; going on from step %d", last, _step(checkpoints))
        else:
            break
    if isinstance(told, Exception):
        raise told
    return told


def _step(checkpoints: Checkpoints) -> int:
    """Of the newest checkpoint; 0 without one."""
    return max((one.step for one in checkpoints.saved()), default=0)


def _trainer(job: Job, gpu: bool) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    execution = job.section.execution
    return TorchTrainer(
        _train,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=gpu, resources_per_worker={"CPU": job.cpus}
        ),
        run_config=RunConfig(
            storage_path=str(cache_folder() / "ray"),  # for its own marks; no node reads another's
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[Losses(job.line)],
            # Workers of one training share no cores, so their threads may wait busily: a step was 1.23 times that of a
            # plain script when they slept, 1.09 times so.
            worker_runtime_env={"env_vars": QUIET if gpu else QUIET | CPU | {"OMP_NUM_THREADS": str(job.cpus)}},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _train(config: dict[str, Any]) -> dict[str, Any] | Exception:
    """One worker. Errors for the user are returned: raised ones would count as deaths and be tried again."""
    import torch
    from safetensors import SafetensorError

    job: Job = config["job"]
    _, failure = ray.get(job.line.asked.remote())
    if failure is not None:
        return failure
    take_keys()
    torch.set_num_threads(job.cpus)
    if job.section.execution.num_workers == 1 and job.section.execution.strategy == "ddp":
        # Without a rank accelerate leaves DDP out: on its own it would only copy every gradient.
        os.environ.pop("LOCAL_RANK")
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if not (lines := logging.getLogger("xgray")).handlers:
        lines.addHandler(logging.StreamHandler())
        lines.setLevel(logging.INFO)
        lines.propagate = False
    try:
        return _train_job(job)
    except Interrupted as error:
        return error
    except (XgrayError, OSError, SafetensorError) as error:
        failure = error if isinstance(error, XgrayError) else _told(error)
        if failure is None:
            raise  # it may pass
        if job.section.execution.num_workers == 1:
            return failure
        # The others wait for this worker, so it has to die.
        ray.get(job.line.fail.remote(failure))
        raise


def _told(error: Exception) -> StageError | None:
    """What to say of an error of files that fails for good; None where the next try may do better."""
    if is_transient(error):
        return None
    return StageError(f"train: {str(error).splitlines()[0]}; mend it, and the same command goes on")


def _train_job(job: Job) -> dict[str, Any]:
    import ray.train
    import torch
    from ray.train.collective import barrier, broadcast_from_rank_zero

    job = replace(job, model=local_weights(job.model))
    rank = ray.train.get_context().get_world_rank()
    scratch = job.scratch(rank)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tokenizer = load_tokenizer(job.model, job.revision)
    prepared = prepare_pairs(job.pairs, tokenizer, job.section, job.seed)
    counts = {
        "num_pairs": prepared.num_pairs,
        "num_train": len(prepared.train),
        "num_validation": len(prepared.validation),
        "num_dropped": prepared.num_dropped,
        "num_truncated": prepared.num_truncated,
        "num_reference_computed": 0,
        "num_reference_reused": len(prepared.train) + len(prepared.validation),
    }
    metrics = Metrics(job.output, scratch)
    checkpoints = Checkpoints(job.output / CHECKPOINTS)
    newest = broadcast_from_rank_zero(checkpoints.newest(scratch) if rank == 0 else None)
    if newest is None or not newest.finished:
        from xgray.train.callbacks import CheckpointReport
        from xgray.train.deepspeed import leave_deepspeed, start_deepspeed
        from xgray.train.trainer import build_trainer

        def save(folder: Path, step: int, score: float | None, finished: bool) -> None:
            if rank == 0:
                metrics.publish()
                checkpoints.add(folder, step, score, finished)

        if job.section.execution.strategy != "ddp":
            start_deepspeed(torch.cuda.is_available())

        def asked() -> bool:
            metrics.publish(every=PUBLISH_SECONDS)
            stopping, _ = ray.get(job.line.asked.remote())
            return bool(stopping)

        noticed: set[str] = set()

        def leaving() -> bool:
            told = ray.train.get_preemption_info()
            new = set(told.preempted_node_ids) - noticed if told else set()
            noticed.update(new)
            if new and rank == 0:
                log.info("train: a node is about to be taken away; saving this step")
            return bool(new)

        report = CheckpointReport(save, asked, leaving)
        trainer = build_trainer(
            job.model, job.section, prepared, tokenizer, job.cache,
            seed=job.seed, work=scratch / "work", metrics=metrics.path, revision=job.revision,
            callbacks=[report],
        )  # fmt: skip
        counts["num_reference_computed"] = trainer.num_reference_computed
        counts["num_reference_reused"] = trainer.num_reference_reused
        trainer.train(resume_from_checkpoint=str(checkpoints.path(newest.name, scratch)) if newest else None)
        if report.interrupted:
            raise Interrupted
        del trainer
        leave_deepspeed()
    result = _export(job, checkpoints, metrics, scratch) if rank == 0 else {}
    barrier()
    shutil.rmtree(scratch, ignore_errors=True)
    if rank:
        return {}
    return {
        "counts": counts | {"tokens": result.pop("tokens")},
        "measured": result,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({job.cpus} threads)",
    }


def _export(job: Job, checkpoints: Checkpoints, metrics: Metrics, scratch: Path) -> dict[str, Any]:
    """Write the weights of the best checkpoint, and say what the training was."""
    best = checkpoints.best(checkpoints.saved())
    assert best is not None  # the last step's has a score
    try:
        source = checkpoints.path(best.name, scratch)
    except DamagedError as error:
        raise StageError(
            f"train: the best checkpoint is damaged ({error}); delete {checkpoints.folder}, and the same command "
            "trains again"
        ) from None
    export(job.model, job.revision, source, job.output.local or scratch / "export")
    if job.output.local is None:
        for folder in sorted((scratch / "export").iterdir()):
            move_with_checksums(folder, job.output / folder.name)
    metrics.publish()
    return summarize(metrics.path) | {"exported_step": best.step}


class Metrics:
    """``metrics.jsonl``: on a disk it lies where it belongs; an object store gets copies of it."""

    def __init__(self, output: Folder, scratch: Path) -> None:
        self.output = output
        self.path = (output.local or scratch) / METRICS
        self._published = time.monotonic()
        if output.local is None and output.exists(METRICS):
            output.fetch(METRICS, self.path)

    def publish(self, every: float = 0.0) -> None:
        """Copy the file, if the last time is ``every`` seconds ago."""
        if self.output.local is None and self.path.exists() and time.monotonic() - self._published >= every:
            self.output.write_bytes(METRICS, self.path.read_bytes())
            self._published = time.monotonic()
