"""Training on Ray Train: workers, their resources, checkpoints and what happens when one of them dies.

Ray Train keeps two checkpoints below the output folder, the best and the last. It lists a checkpoint when all workers
have handed in their part, and hands the last of the list to workers that start: after the death of a worker within the
run, after the death of all of it when :func:`run_training` is called again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from xgray.config import Model, Train, TrainExecution
from xgray.errors import InputError, StageError, XgrayError
from xgray.models import cache_folder, is_adapter, load_tokenizer, resolve
from xgray.rows import PreferencePair
from xgray.runs import StageResult
from xgray.storage import TEMPORARY_MARK, Folder
from xgray.train.export import export
from xgray.train.feasible import check_feasible
from xgray.train.metrics import METRICS, summarize
from xgray.train.pairs import prepare_pairs
from xgray.train.reference import ReferenceCache

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RESULT = "result.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of complete checkpoints."""
MAX_FAILURES = 3
"""Deaths of workers that a run survives by itself."""
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

CPU = {"DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    model: str
    revision: str | None
    section: Train
    pairs: Sequence[PreferencePair]
    seed: int
    output: Path
    cache: ReferenceCache
    cpus: int


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
    the last one where nothing is held out. Ray must be initialised.

    Args:
        seed: Seed of the split, the order and the adapter's start, where the section names none.
        output: A folder that all nodes see under the same path.
        reference_fingerprint: Of the model's weights, see :func:`xgray.models.model_fingerprint`.

    Raises:
        InputError: the section, the pairs or the model cannot be trained with.
        StageError: the training failed half-way; calling again resumes from the last checkpoint.
    """
    began = time.perf_counter()
    if output.exists(RESULT):
        return StageResult(**output.read_json(RESULT))
    folder = output.local
    if folder is None:
        raise InputError(f"runs: training needs a folder that all nodes mount, not {output.uri}")
    gpu, cpus = resources(section.execution)
    check_feasible(section, gpu)
    base = resolve(model)
    if Path(base).is_dir():
        base = str(Path(base).absolute())
        if is_adapter(base):
            raise InputError(f"model.id: {base} is an adapter; tuning begins with a whole model")
    _tidy(folder / CHECKPOINTS)
    job = Job(
        model=base,
        revision=model.revision,
        section=section,
        pairs=pairs,
        seed=seed if section.seed is None else section.seed,
        output=folder,
        cache=ReferenceCache.of(section, reference_fingerprint, str(cache_folder())),
        cpus=cpus,
    )
    told = _fit(job, gpu)
    result = StageResult(
        counts=told["counts"], measured=told["measured"], device=told["device"], seconds=time.perf_counter() - began
    )
    output.write_json(RESULT, asdict(result))
    shutil.rmtree(folder / CHECKPOINTS)
    return result


def resources(execution: TrainExecution) -> tuple[bool, int]:
    """Whether each worker takes a GPU, and its cores: as many as let all workers be placed at once.

    Raises:
        InputError: this cluster can never place them.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = any(node.get("GPU") for node in nodes) if execution.use_gpu is None else execution.use_gpu

    def places(cpus: int) -> int:
        rooms = [(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0))) for node in nodes]
        return sum(min(room) if gpu else room[0] for room in rooms)

    most = execution.cpus_per_worker or int(max(node.get("CPU", 0) for node in nodes))
    least = execution.cpus_per_worker or 1
    for cpus in range(most, least - 1, -1):
        if places(cpus) >= execution.num_workers:
            return gpu, cpus
    asked = f"{execution.num_workers} workers of {least} CPUs{' and a GPU' if gpu else ''}"
    raise InputError(f"train.execution.num_workers: the cluster has no room for {asked} at once")


def _fit(job: Job, gpu: bool) -> dict[str, Any]:
    """What the first worker says of the finished training."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    execution = job.section.execution
    trainer = TorchTrainer(
        _train,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=execution.num_workers, use_gpu=gpu, resources_per_worker={"CPU": job.cpus}
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(job.output),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="score", checkpoint_score_order="min"
            ),
            # Workers of one training share no cores, so their threads may wait busily: a step was 1.23 times that of a
            # plain script when they slept, 1.09 times so.
            worker_runtime_env={"env_vars": QUIET if gpu else QUIET | CPU | {"OMP_NUM_THREADS": str(job.cpus)}},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        told = trainer.fit().return_value
    except TrainingFailedError as error:
        last = str(error).strip().splitlines()[-1]
        raise StageError(f"train: {last}; the same command resumes from the last checkpoint") from error
    except SystemExit:
        # Ray Train answers Ctrl-C by leaving the program as if all were well.
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
    if isinstance(told, XgrayError):
        raise told
    return told


def _tidy(checkpoints: Path) -> None:
    """Delete what a killed run left half-written: folders that are not in the list, all if the list itself is torn."""
    try:
        listed = json.loads((checkpoints / SNAPSHOT).read_text())["checkpoint_results"]
    except FileNotFoundError:
        listed = []
    except ValueError:
        log.warning("train: %s is torn; the training starts again", checkpoints / SNAPSHOT)
        shutil.rmtree(checkpoints)
        return
    whole = {one["checkpoint_dir_name"] for one in listed}
    for folder in checkpoints.glob("checkpoint_*"):
        if folder.is_dir() and folder.name not in whole:
            shutil.rmtree(folder)


def _train(config: dict[str, Any]) -> dict[str, Any] | XgrayError:
    """One worker. Errors for the user are returned: raised ones would count as deaths and be tried again."""
    import torch

    job: Job = config["job"]
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
    except XgrayError as error:
        return error


def _train_job(job: Job) -> dict[str, Any]:
    import ray.train
    import torch

    rank = ray.train.get_context().get_world_rank()
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
    work = job.output / f"{TEMPORARY_MARK}train-{rank}"
    shutil.rmtree(work, ignore_errors=True)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None or not _finished(Path(checkpoint.path)):
        from xgray.train.deepspeed import leave_deepspeed, start_deepspeed
        from xgray.train.trainer import CheckpointReport, build_trainer

        if job.section.execution.strategy != "ddp":
            start_deepspeed(torch.cuda.is_available())
        trainer = build_trainer(
            job.model, job.section, prepared, tokenizer, job.cache,
            seed=job.seed, work=work, metrics=job.output / METRICS, revision=job.revision,
            callbacks=[CheckpointReport(_report)],
        )  # fmt: skip
        counts["num_reference_computed"] = trainer.num_reference_computed
        counts["num_reference_reused"] = trainer.num_reference_reused
        trainer.train(resume_from_checkpoint=checkpoint.path if checkpoint else None)
        del trainer
        leave_deepspeed()
    shutil.rmtree(work, ignore_errors=True)
    reported = ray.train.get_all_reported_checkpoints()
    if rank:
        return {}
    best = min(reported, key=lambda one: (one.metrics["score"], one.metrics["step"]))
    export(job.model, job.revision, Path(best.checkpoint.path), job.output)
    measured = summarize(job.output / METRICS)
    return {
        "counts": counts | {"tokens": measured.pop("tokens")},
        "measured": measured | {"exported_step": best.metrics["step"]},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({job.cpus} threads)",
    }


def _report(folder: Path, metrics: dict[str, float]) -> None:
    import ray.train

    checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=_move)


def _move(checkpoint: Any, name: str) -> Any:
    """Move this worker's part of a checkpoint to the others' parts; both folders are on one disk."""
    import ray.train

    source = Path(checkpoint.path)
    target = Path(ray.train.get_context().get_storage().experiment_fs_path) / name
    for file in [one for one in source.rglob("*") if one.is_file()]:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return ray.train.Checkpoint.from_directory(target)


def _finished(checkpoint: Path) -> bool:
    """Whether the training had come to its end, by steps or by patience, when it saved the checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return bool(state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])
