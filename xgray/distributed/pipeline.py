"""Prompts through engines and scorers, streamed over Ray Data.

    blocks of prompts ─▶ engine actors ─▶ scoring actors ─▶ progress
                            │ rows           │ rows
                            ▼                ▼
                    generate/{model}/    score/{model}/

The actor that makes a block's rows (:mod:`xgray.runs.blocks`) commits them as one file before it passes the file's name
on. Rows on disk are never made again; killing any process costs at most the blocks in flight.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.util.annotations import RayDeprecationWarning

from xgray.config import Generate
from xgray.distributed.actors import (
    Item,
    PipelineModel,
    PipelineSettings,
    ScoreActor,
    block_reports,
    dataset,
)
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.crash_ledger import CrashLedgerClient
from xgray.distributed.failures import worker_died
from xgray.distributed.generate_actor import MAX_OPEN, GenerateActor
from xgray.distributed.gpu_sharing import gpu_passes
from xgray.distributed.metrics import BlockReport
from xgray.distributed.nodes import block_size, engines_use_gpu, num_fitting
from xgray.distributed.placement import describe_resources, place_engines, place_scorers
from xgray.distributed.waiting import log_waiting
from xgray.errors import StageError
from xgray.generate.engine import check_prompts
from xgray.rows import Completions, Scores
from xgray.runs.blocks import Missing, RowCounts, count_rows, find_missing, has_each_prompt_once
from xgray.runs.failures import refuse_failures
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PromptFile

if TYPE_CHECKING:
    from ray.data import Dataset

SAMPLING_CALLS = MAX_OPEN + 1
"""Blocks that one engine's actor has in flight: those that are sampled, and one that is written or on its way."""

SCORING_CALLS = 4
"""Blocks that one scoring actor has in flight: enough to keep a remote scorer's rate limit used between blocks."""

RESTARTS = {"max_restarts": -1, "max_task_retries": -1}
"""An actor that dies is started again wherever there is room; the crash ledger knows what kills actors repeatedly."""

ITERATION_THREAD = "iter_threaded"
"""The name of the threads in which Ray Data fetches blocks ahead."""

THREADS_SECONDS = 10.0
"""How long to wait for these threads. They check every 0.1 s whether to end; a thread that takes longer hangs."""


@dataclass
class Tally:
    """What was done for one model in one stage."""

    num_prompts: int = 0
    num_reused: int = 0
    num_completions: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    reused: RowCounts = field(default_factory=RowCounts)
    """Counts of the rows that earlier attempts left; the other counts are of this attempt."""
    num_engine_starts: int = 0
    engine_start_seconds: float = 0.0
    """Of all engines that started for a block of this model."""
    device: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    scorer_counts: dict[str, float] = field(default_factory=dict)
    """What the scorers of all actors counted during this model's blocks."""
    began: float | None = None
    ended: float | None = None

    def add(self, report: BlockReport) -> None:
        """Add an actor's report of one block."""
        self.num_completions += report["num_completions"]
        self.num_tokens += report["num_tokens"]
        self.num_errors += report["num_errors"]
        self.num_engine_starts += report["start_seconds"] > 0
        self.engine_start_seconds += report["start_seconds"]
        self.device = report["device"]
        self.measured |= report["measured"]
        for name, value in report.get("scorer_counts", {}).items():
            self.scorer_counts[name] = self.scorer_counts.get(name, 0) + value
        self.began = report["began"] if self.began is None else min(self.began, report["began"])
        self.ended = report["ended"] if self.ended is None else max(self.ended, report["ended"])

    def result(self, stage: str) -> StageResult:
        """Return what the stage's manifest records."""
        counts = {
            "num_prompts": self.num_prompts,
            "num_reused": self.num_reused,
            "num_completions": self.num_completions + self.reused.completions,
            "num_errors": self.num_errors + self.reused.errors,
        }
        # At least 0, because the actors' clocks may have been set back meanwhile.
        seconds = max(self.ended - self.began, 0.0) if self.began is not None and self.ended is not None else 0.0
        measured = dict(self.measured)
        if "scorer" in measured:
            measured["scorer"] = {**measured["scorer"], **self.scorer_counts}
        if stage == "generate":
            counts["num_tokens"] = self.num_tokens + self.reused.tokens
            measured["num_engine_starts"] = self.num_engine_starts
            measured["engine_start_seconds"] = round(self.engine_start_seconds, 1)
            if seconds:
                measured["tokens_per_second"] = round(self.num_tokens / seconds, 1)
        return StageResult(counts=counts, measured=measured, device=self.device, seconds=seconds)


Tallies = dict[tuple[str, str], Tally]
"""By stage and model."""


def run_pipeline(
    models: Sequence[PipelineModel],
    settings: PipelineSettings,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> Tallies:
    """Make the completions and scores that ``models`` lack. Ray must be up.

    Raises:
        InputError: a prompt is too long, or the model or the scorer cannot be loaded.
        StageError: actors failed, or most of what they made are errors; calling again goes on from what is committed.
    """
    by_name = _by_name(models)
    prompts = PromptFile(settings.run) if settings.generate else None
    generate = settings.generate or Generate()
    on_gpu = settings.engine == "vllm" and engines_use_gpu(generate, cluster_capacity().has_gpu)
    size = block_size(generate, fills_steps=on_gpu)
    missing = _missing(by_name, settings, prompts, size)
    if prompts and settings.generate and settings.engine != "dummy":
        _check_lengths(by_name, missing, prompts, settings.generate)
    tallies: Tallies = {}
    for name, lacking in missing.items():
        if settings.generate:
            tallies["generate", name] = Tally(lacking.num_prompts, num_reused=lacking.num_sampled)
        if settings.score:
            tallies[settings.scoring, name] = Tally(lacking.num_prompts, num_reused=lacking.num_scored)
    passes = gpu_passes(settings, [by_name[name] for name, lacking in missing.items() if lacking.unsampled])
    done = {key: tally.num_reused for key, tally in tallies.items()}
    for (stage, name), tally in tallies.items():
        on_progress(f"{stage}/{name}", tally.num_reused, tally.num_prompts)

    def report(block: BlockReport) -> None:
        key = block["stage"], block["model"]
        tallies[key].add(block)
        done[key] += block["num_prompts"]
        on_progress("/".join(key), done[key], tallies[key].num_prompts, tallies[key].num_errors)

    for each in passes:
        if len(passes) > 1:
            missing = _missing(by_name, each, prompts if each.generate else None, size)
        _run_blocks(missing, by_name, each, report)
    _check_complete(by_name, tallies, prompts, size)
    for (stage, name), tally in tallies.items():
        if tally.num_errors + tally.reused.errors:  # without an error no row need be read
            model, is_sampled = by_name[name], stage == "generate"
            folder, kind = (model.completions, Completions) if is_sampled else (model.scores, Scores)
            refuse_failures(f"{stage}/{name}", folder, kind, model.scores)
    return tallies


def _by_name(models: Sequence[PipelineModel]) -> dict[str, PipelineModel]:
    """Return the models by name, those of the same weights in a row, with all adapters that their engine must load."""
    bases = list(dict.fromkeys(model.weights for model in models))
    adapters = {
        base: tuple(dict.fromkeys(model.adapter for model in models if model.weights == base and model.adapter))
        for base in bases
    }
    return {
        model.model: replace(model, weights=replace(model.weights, adapters=adapters[model.weights]))
        for model in sorted(models, key=lambda model: bases.index(model.weights))
    }


def _check_lengths(
    models: Mapping[str, PipelineModel], missing: Mapping[str, Missing], prompts: PromptFile, generate: Generate
) -> None:
    """Refuse prompts that are too long for one of the models that will sample them."""
    from xgray.models.load import context_length, load_config, load_tokenizer

    checked: dict[tuple[str, str | None], set[int]] = {}
    for name, model in models.items():
        path, revision = model.weights.path, model.weights.revision
        seen = checked.setdefault((path, revision), set())
        unchecked = [block for block in missing[name].unsampled if block.start not in seen]
        if not unchecked:
            continue
        context = context_length(load_config(path, revision))
        tokenizer = load_tokenizer(*model.weights.tokenizer_source)
        check_prompts((prompts.read(block.start, block.stop) for block in unchecked), tokenizer, generate, context)
        seen.update(block.start for block in unchecked)


def _missing(
    models: Mapping[str, PipelineModel], settings: PipelineSettings, prompts: PromptFile | None, size: int
) -> dict[str, Missing]:
    """Return what each model lacks of the stages that the settings name."""
    return {
        name: find_missing(name, prompts, size, model.completions, model.scores if settings.score else None)
        for name, model in models.items()
    }


def _run_blocks(
    missing: dict[str, Missing],
    models: Mapping[str, PipelineModel],
    settings: PipelineSettings,
    report: Callable[[BlockReport], None],
) -> None:
    """Run what is missing through the actors, and report their blocks as they finish. It empties ``missing``."""
    new: list[Item] = [{"new": asdict(block)} for lacking in missing.values() for block in lacking.unsampled]
    unscored: list[Item] = [
        {"made": asdict(block), "parts": []} for lacking in missing.values() for block in lacking.unscored
    ]
    missing.clear()  # of a large run they take much of the driver's memory
    if not new and not unscored:
        return
    # Closed here also when an interrupt comes between two reports: its traceback would keep the stream open.
    with contextlib.closing(_stream(new, unscored, models, settings)) as reports:
        for block in reports:
            report(block)


def _check_complete(
    models: Mapping[str, PipelineModel], tallies: Tallies, prompts: PromptFile | None, size: int
) -> None:
    """Check that every prompt has one row in each folder, and count the rows that earlier attempts left.

    Raises:
        StageError: a prompt has no row, or more than one.
    """
    for (stage, name), tally in tallies.items():
        model = models[name]
        folder = model.completions if stage == "generate" else model.scores
        if not has_each_prompt_once(name, prompts, size, model.completions, folder):
            raise StageError(
                f"{folder}: not every prompt has exactly one row. Delete this folder and run the same command again."
            )
        if tally.num_reused:
            whole = count_rows(folder, Completions if stage == "generate" else Scores)
            tally.reused = RowCounts(
                whole.completions - tally.num_completions,
                whole.tokens - tally.num_tokens,
                whole.errors - tally.num_errors,
            )


def _stream(
    new: list[Item], unscored: list[Item], models: Mapping[str, PipelineModel], settings: PipelineSettings
) -> Generator[BlockReport, None, None]:
    """Run the blocks, and yield the actors' reports as blocks finish.

    Args:
        new: blocks to sample, and then to score.
        unscored: blocks of completions to score.
    """
    _quiet_ray_data()
    flow, wanted = _flow(new, unscored, models, settings)
    try:
        with log_waiting(lambda: _waiting_for(wanted)), contextlib.closing(iter(flow.iter_rows())) as rows:
            for row in rows:
                yield from block_reports(row)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise worker_died(error) from error
    finally:
        _await_iteration_threads()


def _quiet_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own progress reports the same
    # Before Ray 2.64 the options of RESTARTS can be set in no other way.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning, module=re.escape(__name__))


def _flow(
    new: list[Item], unscored: list[Item], models: Mapping[str, PipelineModel], settings: PipelineSettings
) -> tuple[Dataset, dict[str, dict[str, Any]]]:
    """Return the dataset whose rows are finished blocks, and Ray's options for the actors of each stage."""
    arguments = (settings, models, CrashLedgerClient())
    sources, wanted, capacity = [], {}, cluster_capacity()
    if new and settings.generate:
        num_engines, wanted["generate"] = place_engines(capacity, settings.generate, settings.score)
        if settings.scorer_gpu is not None:
            wanted["generate"]["num_gpus"] = round(1 - settings.scorer_gpu, 2)
        num_calls = min(SAMPLING_CALLS, math.ceil(len(new) / num_engines))  # the first engine leaves blocks for others
        sources.append(
            dataset(new).map_batches(
                GenerateActor,
                fn_constructor_args=arguments,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=num_engines,
                    max_tasks_in_flight_per_actor=num_calls,
                    max_concurrent_calls_per_actor=num_calls,
                    enable_true_multi_threading=True,
                ),
                **RESTARTS,
                **wanted["generate"],
            )
        )
    if unscored:
        sources.append(dataset(unscored))
    flow = sources[0].union(*sources[1:]) if len(sources) > 1 else sources[0]
    if settings.score:
        if settings.scorer_gpu is not None:
            num_scorers, wanted[settings.scoring] = 1, {"num_cpus": 0, "num_gpus": settings.scorer_gpu}
        else:
            num_scorers, wanted[settings.scoring] = place_scorers(
                capacity, settings.score, settings.generate if new else None, len(new) + len(unscored)
            )
        flow = flow.map_batches(
            ScoreActor,
            fn_constructor_args=arguments,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=num_scorers,
                max_tasks_in_flight_per_actor=SCORING_CALLS,
                max_concurrent_calls_per_actor=SCORING_CALLS,
            ),
            **RESTARTS,
            **wanted[settings.scoring],
        )
    return flow, wanted


def _waiting_for(wanted: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what actors wait for if no node that is alive can hold them, given Ray's options by stage."""
    alive = cluster_capacity().alive
    for stage, options in wanted.items():
        cpus, gpus = options["num_cpus"], options.get("num_gpus", 0)
        if (cpus or gpus) and not num_fitting(alive, cpus, gpus):
            return f"{stage}: waiting for a node with {describe_resources(cpus, gpus)}, none is alive"
    return None


def _await_iteration_threads() -> None:
    """Wait for the threads that Ray Data leaves behind when an iteration ends or is given up.

    If such a thread releases a block after Ray has shut down, the whole process ends without a message (Ray 2.60).
    """
    deadline = time.monotonic() + THREADS_SECONDS
    for thread in threading.enumerate():
        if thread.name == ITERATION_THREAD:
            thread.join(max(0.0, deadline - time.monotonic()))
