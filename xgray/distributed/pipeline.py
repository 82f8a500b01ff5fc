"""Prompts through engines and scorers, streamed over Ray Data.

    blocks of prompts ─▶ engine actors ─▶ scoring actors ─▶ progress
                            │ rows           │ rows
                            ▼                ▼
                    generate/{model}/    score/{model}/

A block (:mod:`xgray.runs.blocks`) is committed as one file by the actor that made it, before it is passed on; what is passed
on is the file's name. What is on disk is never made again; killing anything costs at most the blocks in flight.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from xgray.config import Generate, Score
from xgray.distributed.actors import GenerateActor, Item, Place, Places, ScoreActor, dataset, parts_of
from xgray.distributed.cluster import cluster_capacity
from xgray.distributed.crash_ledger import CrashLedgerClient
from xgray.distributed.failures import death
from xgray.distributed.nodes import num_fitting
from xgray.distributed.placement import describe_resources, place_engines, place_scorers
from xgray.distributed.waiting import log_waiting
from xgray.errors import StageError
from xgray.generate.engine import EngineName, Weights, check_prompts
from xgray.mechanism.neurons import Edit
from xgray.rows import Completions, Scores
from xgray.runs.blocks import Missing, RowCounts, check_once, count_rows, find_missing
from xgray.runs.manifest import StageResult
from xgray.runs.progress import OnProgress
from xgray.runs.prompts import PromptFile
from xgray.storage.folder import Folder

SCORING_CALLS = 4
"""Blocks that one scoring actor has under way: enough to keep a remote scorer's quota used between blocks."""

RESTARTS = {"max_restarts": -1, "max_task_retries": -1}
"""An actor that dies is started again, wherever there is room; what dies again and again the ledger knows."""

ITERATION_THREAD = "iter_threaded"
"""What Ray Data calls the threads that fetch blocks ahead."""

THREADS_SECONDS = 10.0
"""They look every 0.1 s whether they are still wanted; more is a thread that hangs."""


@dataclass(frozen=True)
class PipelineModel:
    """One model of the experiment, and where its rows lie."""

    model: str
    base: Weights
    """The weights that an engine loads for it; adapters of targets with the same ones are served together."""
    adapter: str | None
    completions: Folder
    scores: Folder
    edit: Edit | None = None
    """Of the neurons while it is sampled."""


@dataclass
class Tally:
    """What was done for one model in one stage."""

    num_prompts: int = 0
    num_reused: int = 0
    num_completions: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    reused: RowCounts = field(default_factory=RowCounts)
    """What earlier attempts left; the other counts are of this one."""
    seconds: float = 0.0
    """From the first block's beginning to the last one's end."""
    busy_seconds: float = 0.0
    """Of all actors together, at this model's blocks."""
    num_engine_starts: int = 0
    engine_start_seconds: float = 0.0
    """Of all engines that this model was the first to need."""
    device: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    scorer_counts: dict[str, float] = field(default_factory=dict)
    """What the scorers of all actors counted while they were at this model's blocks."""
    began: float | None = None
    ended: float | None = None

    def add(self, part: dict[str, Any]) -> None:
        self.num_completions += part["num_completions"]
        self.num_tokens += part["num_tokens"]
        self.num_errors += part["num_errors"]
        self.busy_seconds += part["seconds"]
        self.num_engine_starts += part["start_seconds"] > 0
        self.engine_start_seconds += part["start_seconds"]
        self.device = part["device"]
        self.measured |= part["measured"]
        for name, value in part.get("scorer_counts", {}).items():
            self.scorer_counts[name] = self.scorer_counts.get(name, 0) + value
        self.began = part["began"] if self.began is None else min(self.began, part["began"])
        self.ended = part["ended"] if self.ended is None else max(self.ended, part["ended"])

    def result(self, stage: str) -> StageResult:
        counts = {
            "num_prompts": self.num_prompts,
            "num_reused": self.num_reused,
            "num_completions": self.num_completions + self.reused.completions,
            "num_errors": self.num_errors + self.reused.errors,
        }
        if stage == "generate":
            counts["num_tokens"] = self.num_tokens + self.reused.tokens
        # Of the actors' clocks, which may be set back meanwhile.
        seconds = max(self.ended - self.began, 0.0) if self.began is not None and self.ended is not None else 0.0
        measured = dict(self.measured)
        if "scorer" in measured:
            measured["scorer"] = {**measured["scorer"], **self.scorer_counts}
        if stage == "generate":
            measured["num_engine_starts"] = self.num_engine_starts
            measured["engine_start_seconds"] = round(self.engine_start_seconds, 1)
        if stage == "generate" and seconds:
            measured["tokens_per_second"] = round(self.num_tokens / seconds, 1)
        return StageResult(counts=counts, measured=measured, device=self.device, seconds=seconds)


Tallies = dict[tuple[str, str], Tally]
"""By stage and model."""


def run_pipeline(
    targets: Sequence[PipelineModel],
    run: Folder,
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> Tallies:
    """Make the rows that are missing; either stage may be None, and is then left as it is on disk.

    Args:
        run: the run, whose prompt file says what is sampled.
        engine: what samples; None where nothing is sampled.

    Raises:
        InputError: a prompt is too long, the model or the scorer cannot be had.
        StageError: actors failed; calling again goes on from the last committed block.
    """
    places = _places(targets)
    prompts = PromptFile(run) if generate else None
    size = (generate or Generate()).execution.batch_size
    missing = {
        model: find_missing(model, prompts, size, place.completions, place.scores if score else None)
        for model, place in places.items()
    }
    tallies: Tallies = {}
    for model, one in missing.items():
        if generate:
            tallies["generate", model] = Tally(one.num_prompts, num_reused=one.num_made)
        if score:
            tallies["score", model] = Tally(one.num_prompts, num_reused=one.num_scored)
    if prompts and generate and engine != "dummy":
        _check(places, missing, prompts, generate)
    done = {key: tally.num_reused for key, tally in tallies.items()}
    for (stage, model), tally in tallies.items():
        on_progress(f"{stage}/{model}", tally.num_reused, tally.num_prompts)
    new = [{"new": asdict(block)} for one in missing.values() for block in one.new]
    unscored = [{"made": asdict(block), "parts": []} for one in missing.values() for block in one.unscored]
    del missing
    # Closed here also when an interrupt comes between two parts: its traceback would keep the stream open.
    with contextlib.closing(_stream(new, unscored, places, run, engine, generate, score, seed)) as parts:
        for part in parts:
            stage, model = part["stage"], part["model"]
            tallies[stage, model].add(part)
            done[stage, model] += part["num_prompts"]
            tally = tallies[stage, model]
            on_progress(f"{stage}/{model}", done[stage, model], tally.num_prompts, tally.num_errors)
    for stage, model in tallies:
        place = places[model]
        folder = place.completions if stage == "generate" else place.scores
        if not check_once(model, prompts, size, place.completions, folder):
            raise StageError(
                f"{folder}: not every prompt is there, and once; delete this folder and run the same command again"
            )
        tally = tallies[stage, model]
        if tally.num_reused:
            whole = count_rows(folder, Completions if stage == "generate" else Scores)
            tally.reused = RowCounts(
                whole.completions - tally.num_completions,
                whole.tokens - tally.num_tokens,
                whole.errors - tally.num_errors,
            )
    return tallies


def _places(targets: Sequence[PipelineModel]) -> Places:
    """By model; those that share an engine follow each other, and each engine is ready for all of their adapters."""
    bases = list(dict.fromkeys(target.base for target in targets))
    adapters = {
        base: tuple(dict.fromkeys(one.adapter for one in targets if one.base == base and one.adapter)) for base in bases
    }
    return {
        one.model: Place(
            replace(one.base, adapters=adapters[one.base]), one.adapter, one.completions, one.scores, one.edit
        )
        for one in sorted(targets, key=lambda target: bases.index(target.base))
    }


def _check(places: Places, missing: dict[str, Missing], prompts: PromptFile, generate: Generate) -> None:
    """Refuse prompts that are too long for one of the models that are to continue them."""
    from xgray.models.load import context_length, load_config, load_tokenizer

    checked: dict[tuple[str, str | None], set[int]] = {}
    for model, place in places.items():
        path, revision = place.weights.path, place.weights.revision
        todo = [block for block in missing[model].new if block.start not in checked.setdefault((path, revision), set())]
        if not todo:
            continue
        context = context_length(load_config(path, revision))
        tokenizer = load_tokenizer(path, revision)
        check_prompts((prompts.read(block.start, block.stop) for block in todo), tokenizer, generate, context)
        checked[path, revision].update(block.start for block in todo)


def _stream(
    new: list[Item],
    unscored: list[Item],
    places: Places,
    run: Folder,
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
) -> Generator[dict[str, Any], None, None]:
    """What the actors did with each block, as blocks finish."""
    if not new and not unscored:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own progress says what its lines say
    # There is no other way to say RESTARTS before Ray 2.64.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning, module=re.escape(__name__))
    ledger = CrashLedgerClient()
    sources, wanted, cluster = [], {}, cluster_capacity()
    if new and generate and engine:
        size, options = place_engines(cluster, generate, score)
        wanted["generate"] = options
        made = dataset(new).map_batches(
            GenerateActor,
            fn_constructor_args=(engine, generate, seed, run, places, ledger),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
            **RESTARTS,
            **options,
        )
        sources.append(made)
    if unscored:
        sources.append(dataset(unscored))
    flow = sources[0].union(*sources[1:]) if len(sources) > 1 else sources[0]
    if score:
        num_actors, options = place_scorers(cluster, score, generate if new else None)
        wanted["score"] = options
        flow = flow.map_batches(
            ScoreActor,
            fn_constructor_args=(score, run.name, places, ledger),
            batch_size=1,
            **RESTARTS,
            compute=ray.data.ActorPoolStrategy(
                size=num_actors,
                max_tasks_in_flight_per_actor=SCORING_CALLS,
                max_concurrent_calls_per_actor=SCORING_CALLS,
            ),
            **options,
        )
    try:
        with log_waiting(lambda: _missing(wanted)), contextlib.closing(iter(flow.iter_rows())) as rows:
            for row in rows:
                yield from parts_of(row)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise death(error) from error
    finally:
        _await_threads()


def _missing(wanted: dict[str, dict[str, Any]]) -> str | None:
    """What no living node can hold, of Ray's options by stage."""
    now = cluster_capacity().alive
    for stage, options in wanted.items():
        cpus, gpus = options["num_cpus"], options.get("num_gpus", 0)
        if (cpus or gpus) and not num_fitting(now, cpus, gpus):
            return f"{stage}: waiting for a node with {describe_resources(cpus, gpus)}: none is there"
    return None


def _await_threads() -> None:
    """Wait for what Ray Data leaves behind when an iteration is over or given up.

    A thread of it that lets go of a block after Ray's shutdown ends the whole process, without a word (Ray 2.60).
    """
    deadline = time.monotonic() + THREADS_SECONDS
    for thread in threading.enumerate():
        if thread.name == ITERATION_THREAD:
            thread.join(max(0.0, deadline - time.monotonic()))
