"""Prompts through engines and scorers, streamed over Ray Data.

    blocks of prompts ─▶ engine actors ─▶ scoring actors ─▶ progress
                            │ rows           │ rows
                            ▼                ▼
                    generate/{model}/    score/{model}/

A block is some prompts of one model: sampled together, scored together, and each time committed as one file by the
actor that made it, before it is passed on. What is on disk is never made again; killing anything costs at most the
block in flight of each actor.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import ray

from xgray.config import Generate, Score
from xgray.distributed.actors import Blocks, GenerateActor, ScoreActor
from xgray.distributed.cluster import total
from xgray.distributed.failures import original
from xgray.errors import InputError
from xgray.generate.engine import EngineName, Weights, check_prompts, context_length
from xgray.rows import Completions, Prompt, Scores, from_table, schema
from xgray.runs import StageResult
from xgray.storage import Folder

OnProgress = Callable[[str, int, int], None]

SCORING_CALLS = 4
"""Blocks that one scoring actor has under way: enough to keep a remote scorer's quota used between blocks."""


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
    device: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None

    def add(self, part: dict[str, Any]) -> None:
        self.num_completions += part["num_completions"]
        self.num_tokens += part["num_tokens"]
        self.num_errors += part["num_errors"]
        self.busy_seconds += part["ended"] - part["began"]
        self.device = part["device"]
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
        if stage == "generate" and seconds:
            self.measured["tokens_per_second"] = round(self.num_tokens / seconds, 1)
        return StageResult(counts=counts, measured=self.measured, device=self.device, seconds=seconds)


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
    tallies: Tallies = {}
    for _, group in groupby(sorted(targets, key=lambda one: _base(one)), key=_base):
        same = list(group)
        adapters = tuple(dict.fromkeys(one.adapter for one in same if one.adapter is not None))
        base = same[0].base
        weights = Weights(base.path, base.revision, base.dtype, adapters)
        _run_group(same, weights, prompts, engine, generate, score, seed, tallies, on_progress)
    return tallies


def _base(target: Target) -> tuple[str, str, str]:
    return target.base.path, target.base.revision or "", target.base.dtype


def _run_group(
    targets: list[Target],
    weights: Weights,
    prompts: Sequence[Prompt],
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
    tallies: Tallies,
    on_progress: OnProgress,
) -> None:
    """Targets that one engine serves, through one pipeline."""
    size = (generate or Generate()).execution.batch_size
    new: list[dict[str, Any]] = []
    unscored: list[dict[str, Any]] = []
    done: dict[tuple[str, str], int] = {}
    num_prompts: dict[str, int] = {}
    for target in targets:
        made = {
            row.prompt_id: row for row in from_table(target.completions.read_parquet(schema(Completions)), Completions)
        }
        scored = set(target.scores.read_parquet(schema(Scores), ["prompt_id"])["prompt_id"].to_pylist())
        missing = [prompt for prompt in prompts if prompt.prompt_id not in made] if generate else []
        new += [_block(target, chunk) for chunk in _chunks(missing, size)]
        num_prompts[target.model] = len(prompts) if generate else len(made)
        if generate:
            done["generate", target.model] = len(prompts) - len(missing)
        if score:
            rows = [row for prompt_id, row in made.items() if prompt_id not in scored]
            unscored += [_block(target, chunk) for chunk in _chunks(rows, size)]
            done["score", target.model] = len(scored)
    for (stage, model), reused in done.items():
        tallies[stage, model] = Tally(num_prompts=num_prompts[model], num_reused=reused)
        on_progress(f"{stage}/{model}", reused, num_prompts[model])
    if generate and new:
        _check(weights, prompts, generate)
    for parts in _stream(new, unscored, targets, weights, engine, generate, score, seed):
        for part in parts:
            key = (part["stage"], part["model"])
            tallies[key].add(part)
            tallies[key].measured |= part["measured"]
            done[key] += part["num_prompts"]
            on_progress(f"{key[0]}/{key[1]}", done[key], num_prompts[key[1]])


def _check(weights: Weights, prompts: Sequence[Prompt], generate: Generate) -> None:
    from transformers import AutoConfig

    from xgray.models import load_tokenizer

    config = AutoConfig.from_pretrained(weights.path, revision=weights.revision)
    check_prompts(prompts, load_tokenizer(weights.path, weights.revision), generate, context_length(config))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _block(target: Target, rows: Sequence[Prompt] | Sequence[Completions]) -> dict[str, Any]:
    """A block, named after the prompts in it."""
    ids = "\n".join([target.model, *(row.prompt_id for row in rows)])
    return {
        "model": target.model,
        "file": f"{hashlib.sha256(ids.encode()).hexdigest()[:24]}.parquet",
        "rows": list(rows),
    }


def _stream(
    new: list[dict[str, Any]],
    unscored: list[dict[str, Any]],
    targets: list[Target],
    weights: Weights,
    engine: EngineName | None,
    generate: Generate | None,
    score: Score | None,
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """What each block did, as blocks finish."""
    if not new and not unscored:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # our own progress says what its lines say
    places = {target.model: (target.completions, target.scores, target.adapter) for target in targets}
    blocks = Blocks()
    parts = []
    if new and generate and engine:
        made = blocks.dataset(new).map_batches(
            GenerateActor,
            fn_constructor_args=(weights, engine, generate, seed, places),
            batch_size=1,
            **_engine_resources(generate, bool(score)),
        )
        parts.append(made)
    if unscored:
        parts.append(blocks.dataset(unscored))
    flow = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    if score:
        alone = not new
        flow = flow.map_batches(
            ScoreActor,
            fn_constructor_args=(score, places),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=1 if score.scorer == "perspective" else score.execution.num_actors,
                max_tasks_in_flight_per_actor=SCORING_CALLS,
                max_concurrent_calls_per_actor=SCORING_CALLS,
            ),
            num_cpus=0,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(_cores() if alone else 1)}},
        )
    try:
        for row in flow.iter_rows():
            yield blocks.parts(row)
    except (ray.exceptions.RayError, RuntimeError, OSError) as error:
        raise original(error) from error


def _cores() -> int:
    return max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])


def _engine_resources(generate: Generate, scoring: bool) -> dict[str, Any]:
    """Where engine actors go: on GPUs where the cluster has any, else one on all cores of a node."""
    execution = generate.execution
    gpus, cpus = total("GPU"), total("CPU")
    if gpus:
        if execution.tensor_parallel > gpus:
            raise InputError(
                f"generate.execution.tensor_parallel: {execution.tensor_parallel} GPUs are asked for, {gpus} are there"
            )
        size = execution.num_actors or gpus // execution.tensor_parallel
        options: dict[str, Any] = {"num_gpus": execution.tensor_parallel, "num_cpus": execution.cpus_per_actor or 1}
    else:
        size = execution.num_actors or 1
        threads = execution.cpus_per_actor or max(1, _cores() // size)
        # The cores are reserved but for one where there are several: Ray Data's own tasks need somewhere to run.
        options = {
            "num_cpus": max(1, threads - 1),
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        }
    needed = size * options["num_cpus"]
    if needed > cpus:
        raise InputError(
            f"generate.execution: {size} engines of {options['num_cpus']} CPUs need {needed}, {cpus} are there"
        )
    return {"compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2), **options}
