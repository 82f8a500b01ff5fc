"""Prompts through engines and scorers, streamed over Ray Data.

    blocks of prompts ─▶ engine actors ─▶ scoring actors ─▶ progress
                            │ rows           │ rows
                            ▼                ▼
                    generate/{model}/    score/{model}/

A block is some prompts of one model: sampled together, scored together, and each time committed as one file by the
actor that made it, before it is passed on. What is on disk is never made again; killing anything costs at most the
blocks in flight. Blocks are cut from the whole list of prompts, not from what is missing, so that one that is made
twice all the same (an actor that outlived its driver) is the same file.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from xgray.config import Generate, Score
from xgray.distributed.actors import Block, GenerateActor, Place, Places, ScoreActor, dataset, parts_of
from xgray.distributed.cluster import cores, thread_environment, total
from xgray.distributed.failures import death
from xgray.errors import InputError, StageError
from xgray.generate.engine import EngineName, Weights, check_prompts
from xgray.rows import Completions, Prompt, from_table, schema
from xgray.runs import StageResult
from xgray.score.build import GPU_SCORERS
from xgray.storage import Folder

OnProgress = Callable[[str, int, int], None]

SCORING_CALLS = 4
"""Blocks that one scoring actor has under way: enough to keep a remote scorer's quota used between blocks."""

RESTARTS = {"max_restarts": 3, "max_task_retries": 3}
"""Deaths of one actor, and tries of one block after them, before the stage fails; Ray Data would go on for ever."""


@dataclass(frozen=True)
class Target:
    """One model of the experiment, and where its rows lie."""

    model: str
    base: Weights
    """The weights that an engine loads for it; adapters of targets with the same ones are served together."""
    adapter: str | None
    completions: Folder
    scores: Folder


@dataclass
class Tally:
    """What was done for one model in one stage."""

    num_prompts: int = 0
    num_reused: int = 0
    num_completions: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    seconds: float = 0.0
    """From the first block's beginning to the last one's end."""
    busy_seconds: float = 0.0
    """Of all actors together, at this model's blocks."""
    num_engine_starts: int = 0
    engine_start_seconds: float = 0.0
    """Of all engines that this model was the first to need."""
    device: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    scorer_counts: Counter[str] = field(default_factory=Counter)
    """What the scorers of all actors counted while they were at this model's blocks."""
    began: float | None = None
    ended: float | None = None

    def add(self, part: dict[str, Any]) -> None:
        self.num_completions += part["num_completions"]
        self.num_tokens += part["num_tokens"]
        self.num_errors += part["num_errors"]
        self.busy_seconds += part["ended"] - part["began"]
        self.num_engine_starts += part["start_seconds"] > 0
        self.engine_start_seconds += part["start_seconds"]
        self.device = part["device"]
        self.measured |= part["measured"]
        self.scorer_counts.update(part.get("scorer_counts", {}))
        self.began = part["began"] if self.began is None else min(self.began, part["began"])
        self.ended = part["ended"] if self.ended is None else max(self.ended, part["ended"])

    def result(self, stage: str) -> StageResult:
        counts = {
            "num_prompts": self.num_prompts,
            "num_reused": self.num_reused,
            "num_completions": self.num_completions,
        }
        counts |= {"num_tokens": self.num_tokens} if stage == "generate" else {"num_errors": self.num_errors}
        seconds = self.ended - self.began if self.began is not None and self.ended is not None else 0.0
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
    targets: Sequence[Target],
    prompts: Sequence[Prompt],
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
    on_progress: OnProgress = lambda label, done, total: None,
) -> Tallies:
    """Make the rows that are missing; either stage may be None, and is then left as it is on disk.

    Args:
        engine: what samples; None where nothing is sampled.

    Raises:
        InputError: a prompt is too long, the model or the scorer cannot be had.
        StageError: actors failed; calling again goes on from the last committed block.
    """
    places = _places(targets)
    tallies: Tallies = {}
    wanted: dict[str, list[str]] = {}
    new: list[Block] = []
    unscored: list[Block] = []
    size = (generate or Generate()).execution.batch_size
    for model, place in places.items():
        table = place.completions.read_parquet(schema(Completions))
        made = {row.prompt_id: row for row in from_table(table, Completions)}
        wanted[model] = [prompt.prompt_id for prompt in prompts] if generate else list(made)
        scored = set(_ids(place.scores)) if score else set()
        if generate:
            tallies["generate", model] = Tally(len(wanted[model]), num_reused=len(made))
            for chunk in _chunks(prompts, size):
                new += _blocks(model, [prompt for prompt in chunk if prompt.prompt_id not in made], scored)
        if score:
            tallies["score", model] = Tally(len(wanted[model]), num_reused=len(scored))
            for ids in _chunks(wanted[model], size):
                unscored += _blocks(model, [made[one] for one in ids if one in made and one not in scored], scored)
    for path, revision in {(place.weights.path, place.weights.revision) for place in places.values()}:
        if generate and new:
            _check(path, revision, prompts, generate)
    done = {key: tally.num_reused for key, tally in tallies.items()}
    for (stage, model), reused in done.items():
        on_progress(f"{stage}/{model}", reused, len(wanted[model]))
    for part in _stream(new, unscored, places, engine, generate, score, seed):
        stage, model = part["stage"], part["model"]
        tallies[stage, model].add(part)
        done[stage, model] += part["num_prompts"]
        on_progress(f"{stage}/{model}", done[stage, model], len(wanted[model]))
    for stage, model in tallies:
        folder = places[model].completions if stage == "generate" else places[model].scores
        if sorted(_ids(folder)) != sorted(wanted[model]):
            raise StageError(
                f"{folder.uri}: not every prompt is there, and once; delete this folder and run the same command again"
            )
    return tallies


def _places(targets: Sequence[Target]) -> Places:
    """By model; those that share an engine follow each other, and each engine is ready for all of their adapters."""
    bases = list(dict.fromkeys(target.base for target in targets))
    adapters = {
        base: tuple(dict.fromkeys(one.adapter for one in targets if one.base == base and one.adapter)) for base in bases
    }
    return {
        one.model: Place(replace(one.base, adapters=adapters[one.base]), one.adapter, one.completions, one.scores)
        for one in sorted(targets, key=lambda target: bases.index(target.base))
    }


def _ids(folder: Folder) -> list[str]:
    """The prompts whose rows, of either kind, are in the folder."""
    ids: list[str] = folder.read_parquet(schema(Completions), ["prompt_id"])["prompt_id"].to_pylist()
    return ids


def _check(path: str, revision: str | None, prompts: Sequence[Prompt], generate: Generate) -> None:
    from xgray.models import context_length, load_config, load_tokenizer

    context = context_length(load_config(path, revision))
    check_prompts(prompts, load_tokenizer(path, revision), generate, context)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _blocks(model: str, rows: Sequence[Prompt] | Sequence[Completions], scored: Collection[str]) -> list[Block]:
    """One block; none where there are no rows."""
    if not rows:
        return []
    known = [row.prompt_id for row in rows if row.prompt_id in scored]
    return [{"model": model, "rows": [asdict(row) for row in rows], "scored": known, "parts": []}]


def _stream(
    new: list[Block],
    unscored: list[Block],
    places: Places,
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What the actors did with each block, as blocks finish."""
    if not new and not unscored:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own progress says what its lines say
    # There is no other way to say RESTARTS before Ray 2.64.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning, module=re.escape(__name__))
    sources = []
    if new and generate and engine:
        made = dataset(new).map_batches(
            GenerateActor,
            fn_constructor_args=(engine, generate, seed, places),
            batch_size=1,
            **RESTARTS,
            **_engine_resources(generate, score),
        )
        sources.append(made)
    if unscored:
        sources.append(dataset(unscored))
    flow = sources[0].union(*sources[1:]) if len(sources) > 1 else sources[0]
    if score:
        flow = flow.map_batches(
            ScoreActor,
            fn_constructor_args=(score, places),
            batch_size=1,
            **RESTARTS,
            compute=ray.data.ActorPoolStrategy(
                size=score.execution.num_actors,
                max_tasks_in_flight_per_actor=SCORING_CALLS,
                max_concurrent_calls_per_actor=SCORING_CALLS,
            ),
            **_scorer_resources(score, generate if new else None),
        )
    try:
        for row in flow.iter_rows():
            yield from parts_of(row)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise death(error) from error


def _scorer_gpus(score: Score | None, generate: Generate | None) -> int:
    """A GPU for each scoring actor that uses one, where that leaves enough for the engines."""
    if score is None or score.scorer not in GPU_SCORERS:
        return 0
    least = (generate.execution.num_actors or 1) * generate.execution.tensor_parallel if generate else 0
    wanted = score.execution.num_actors
    return wanted if total("GPU") - wanted >= least else 0


def _scorer_resources(score: Score, generate: Generate | None) -> dict[str, Any]:
    """Where scoring actors go: each on a GPU of its own, or on cores that none of them reserves."""
    if _scorer_gpus(score, generate):
        return {"num_cpus": 0, "num_gpus": 1}
    environment = thread_environment(1 if generate else cores())
    # Ray leaves the GPUs in sight of those that have none.
    environment["env_vars"]["CUDA_VISIBLE_DEVICES"] = ""
    return {"num_cpus": 0, "runtime_env": environment}


def _engine_resources(generate: Generate, score: Score | None) -> dict[str, Any]:
    """Where engine actors go: on GPUs where the cluster has any, else one on all cores of a node."""
    execution = generate.execution
    gpus, cpus = total("GPU") - _scorer_gpus(score, generate), total("CPU")
    if gpus:
        if execution.tensor_parallel > gpus:
            raise InputError(
                f"generate.execution.tensor_parallel: {execution.tensor_parallel} GPUs are asked for, {gpus} are there"
            )
        size = execution.num_actors or gpus // execution.tensor_parallel
        options: dict[str, Any] = {"num_gpus": execution.tensor_parallel, "num_cpus": execution.cpus_per_actor or 1}
    else:
        size = execution.num_actors or 1
        threads = execution.cpus_per_actor or max(1, cores() // size)
        # The cores are reserved but for one where there are several: Ray Data's own tasks need somewhere to run.
        options = {
            "num_cpus": max(1, threads - 1),
            "runtime_env": thread_environment(threads),
        }
    needed = size * options["num_cpus"]
    if needed > cpus:
        raise InputError(
            f"generate.execution: {size} engines of {options['num_cpus']} CPUs need {needed}, {cpus} are there"
        )
    return {"compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2), **options}
