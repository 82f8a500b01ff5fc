"""The actors of the pipeline: each commits its rows before it passes a block on."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from xgray.config import Generate, Score
from xgray.distributed.crash_ledger import MAX_DEATHS, CrashLedgerClient
from xgray.distributed.devices import check_gpus
from xgray.distributed.failures import Failure
from xgray.distributed.job_environment import enter_directory
from xgray.distributed.keys import take_keys
from xgray.distributed.metrics import BlockReport, count_block
from xgray.distributed.rate_limit import shared_scorer
from xgray.errors import StageError, XgrayError
from xgray.generate.build import build_engine
from xgray.generate.engine import Engine, EngineName, Weights
from xgray.generate.isolate import PROBE, complete_isolated, failed_completions
from xgray.mechanism.neurons import Edit
from xgray.models.load import device_name
from xgray.rows import NOT_VALIDATED, Completions, Prompt, Scores, from_table, to_table
from xgray.runs.blocks import UnsampledBlock, UnscoredBlock, block_file_name
from xgray.runs.prompts import PromptFile
from xgray.score.rows import score_rows
from xgray.score.scorer import Scorer
from xgray.score.validated_only import limited_scorer
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset

    Batch = dict[str, np.ndarray]

MAX_TASKS = 4096
"""Most Ray tasks in one flow, because each costs the driver memory; with more blocks a task takes several in turn."""

MAX_DEATHS_WITH_PROMPT = 2
"""Deaths of the engine's process with a single prompt, after which the prompt is recorded as failed."""

Item = dict[str, Any]
"""One block on its way through the pipeline: ``new`` or ``made`` (the block) and ``parts`` (the actors' reports).

In the place of a block that failed it is a ``failure``. Rows pass on disk alone, so that a node that vanishes takes
none with it."""


@dataclass(frozen=True)
class PipelineModel:
    """One model of the experiment, and the folders of its rows."""

    model: str
    weights: Weights
    """The weights that an engine loads for it; adapters of models with the same weights are served together."""
    adapter: str | None
    completions: Folder
    scores: Folder
    edit: Edit | None = None
    """How neurons are edited while the model is sampled."""


@dataclass(frozen=True)
class PipelineSettings:
    """What holds for all models of one pipeline. Either stage may be None, and its rows are then left as they are."""

    run: Folder
    """The run, whose prompt file holds the prompts to sample."""
    engine: EngineName | None
    """The engine that samples; None where nothing is sampled."""
    generate: Generate | None
    score: Score | None
    seed: int
    scoring: str = "score"
    """The stage that scores, as reports and metrics name it: ``score@guard`` for a scorer that is not the first."""
    directory: str = field(default_factory=os.getcwd)
    """The driver's working directory, from which relative paths start."""


def dataset(items: Sequence[Item]) -> Dataset:
    """Return a Ray dataset of one JSON text per item, so that no column's type depends on an item's content."""
    import ray

    texts = [{"item": json.dumps(item)} for item in items]
    return ray.data.from_items(texts, override_num_blocks=min(len(texts), MAX_TASKS))


def block_reports(row: dict[str, Any]) -> list[BlockReport]:
    """Return the actors' reports of a block that has left the pipeline.

    Raises:
        XgrayError: an actor failed with the block.
    """
    item: Item = json.loads(row["item"])
    if "failure" in item:
        raise Failure(**item["failure"]).error()
    reports: list[BlockReport] = item["parts"]
    return reports


def _decode(batch: Batch) -> Item:
    (text,) = batch["item"].tolist()
    item: Item = json.loads(text)
    return item


def _encode(item: Item) -> Batch:
    import numpy as np

    return {"item": np.array([json.dumps(item)], dtype=object)}


class GenerateActor:
    """Holds one engine, for all languages and for all models that share its base weights.

    The engine starts with the first block. When a block needs other weights, they replace the loaded ones.
    """

    def __init__(
        self, settings: PipelineSettings, models: Mapping[str, PipelineModel], ledger: CrashLedgerClient
    ) -> None:
        assert settings.engine is not None
        assert settings.generate is not None
        take_keys()  # of the hub, for weights that come from there
        self._engine_name = settings.engine
        self._section = settings.generate
        self._seed = settings.seed
        self._run = settings.run.name
        self._prompts = PromptFile(settings.run)
        self._models = models
        self._ledger = ledger
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._start_seconds = 0.0
        self._device = "none" if settings.engine == "dummy" else device_name()

    def __call__(self, batch: Batch) -> Batch:
        item = _decode(batch)
        try:
            return _encode(self._sample(UnsampledBlock(**item["new"])))
        except Exception as error:
            traceback.print_exc()
            return _encode({"failure": asdict(Failure.of(error))})

    def _sample(self, block: UnsampledBlock) -> Item:
        model = self._models[block.model]
        self._start_seconds = 0.0
        self._ready_engine(model)
        start_seconds, began = self._start_seconds, time.time()
        clock = time.perf_counter()
        skipped = set(block.sampled_ids)
        prompts = [prompt for prompt in self._prompts.read(block.start, block.stop) if prompt.prompt_id not in skipped]
        name = block_file_name(block.model, [prompt.prompt_id for prompt in prompts])
        rows = self._committed_rows(model, prompts, name)
        report: BlockReport = {
            "stage": "generate",
            "model": block.model,
            "num_prompts": len(rows),
            "num_completions": sum(len(row.completions) for row in rows),
            "num_tokens": sum(sum(row.token_counts) for row in rows),
            "num_errors": sum(row.error is not None for row in rows),
            "start_seconds": start_seconds,
            "began": began,
            "ended": time.time(),
            "seconds": time.perf_counter() - clock,
            "device": self._device,
            "measured": {"engine": self._engine_name},
        }
        count_block(self._run, report)
        made = UnscoredBlock(block.model, name, 0, len(rows), block.scored_ids)
        return {"made": asdict(made), "parts": [report]}

    def _committed_rows(self, model: PipelineModel, prompts: list[Prompt], name: str) -> list[Completions]:
        """Sample the prompts and commit their rows as the file ``name``, unless an earlier process committed it."""
        work = f"generate/{model.model}/{name}"
        num_deaths, has_ended = self._ledger.begin(work)
        if (num_deaths or has_ended) and model.completions.exists(name):
            rows = from_table(model.completions.read_table(name), Completions)
        else:
            if num_deaths:
                rows = self._sample_singly(model, prompts, work)
            else:
                rows = complete_isolated(
                    lambda restart: self._ready_engine(model, restart), prompts, model.model, model.adapter, self._seed
                )
            model.completions.write_parquet(name, to_table(rows, Completions))
        self._ledger.end(work)
        return rows

    def _sample_singly(self, model: PipelineModel, prompts: list[Prompt], block: str) -> list[Completions]:
        """Sample one prompt at a time, because an engine's process died with the block.

        Raises:
            StageError: the process also dies with a harmless text, so that the engine is at fault and not a prompt.
        """
        rows = []
        for prompt in prompts:
            work = f"{block} {prompt.prompt_id}"
            num_deaths, _ = self._ledger.begin(work)
            if num_deaths >= MAX_DEATHS_WITH_PROMPT:
                cause = f"with {PROBE!r} as with {prompt.prompt_id}, so the engine is at fault"
                probe = self._begin_own_work("probe", cause)
                self._ready_engine(model).sample([PROBE], [self._seed], model.adapter)
                self._ledger.end(probe)
                reason = f"the engine's process died {num_deaths} times with this prompt alone"
                rows.append(failed_completions(prompt, model.model, reason))
            else:
                rows += complete_isolated(
                    lambda restart: self._ready_engine(model, restart), [prompt], model.model, model.adapter, self._seed
                )
            self._ledger.end(work)
        return rows

    def _ready_engine(self, model: PipelineModel, restart: bool = False) -> Engine:
        """Return the engine with the model's weights and edit; a new one if ``restart`` is set."""
        if self._engine is None or self._loaded != model.weights or restart:
            self._engine = self._start(model.weights)
        self._engine.edit(model.edit)
        return self._engine

    def _start(self, weights: Weights) -> Engine:
        work = self._begin_own_work("start", f"as it started with {weights.path}")
        began = time.perf_counter()
        if self._engine is not None:
            try:
                self._engine.close()
            finally:  # a broken engine may fail to close, and must not be closed a second time
                self._engine = None
            gc.collect()  # memory need not hold two engines
        if self._engine_name != "dummy":
            check_gpus()
        try:
            engine = build_engine(self._engine_name, weights, self._section)
        except XgrayError:
            raise
        except Exception as error:  # which would otherwise be taken for the fault of a prompt
            raise Failure.of(error).error() from error
        self._loaded = weights
        self._start_seconds += time.perf_counter() - began
        self._ledger.end(work)
        return engine

    def _begin_own_work(self, kind: str, cause: str) -> str:
        """Note work that no other actor does, and return its name in the ledger.

        Raises:
            StageError: this actor's process died with the work ``MAX_DEATHS`` times; ``cause`` says when.
        """
        import ray

        work = f"{kind} {ray.get_runtime_context().get_actor_id()}"
        num_deaths, _ = self._ledger.begin(work)
        if num_deaths >= MAX_DEATHS:
            raise StageError(f"generate: the engine's process died {num_deaths} times {cause}")
        return work


class ScoreActor:
    """Holds one scorer, which is built with the first block; several blocks are scored concurrently."""

    def __init__(
        self, settings: PipelineSettings, models: Mapping[str, PipelineModel], ledger: CrashLedgerClient
    ) -> None:
        assert settings.score is not None
        enter_directory(settings.directory)
        self._section: Score = settings.score
        self._stage = settings.scoring
        self._run = settings.run.name
        self._models = models
        self._ledger = ledger
        self._scorer: Scorer | None = None
        self._building = asyncio.Lock()
        self._counted: dict[str, float] = {}

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        item = _decode(batch)
        if "failure" not in item:
            try:
                item = {"parts": [*item["parts"], *await self._score(UnscoredBlock(**item["made"]))]}
            except Exception as error:
                traceback.print_exc()
                item = {"failure": asdict(Failure.of(error))}
        yield _encode(item)

    async def _score(self, block: UnscoredBlock) -> list[BlockReport]:
        async with self._building:
            if self._scorer is None:
                check_gpus()
                scorer = await asyncio.to_thread(shared_scorer, self._section)
                self._scorer = scorer if self._stage == "score" else limited_scorer(scorer, self._section)
        model = self._models[block.model]
        completions = await asyncio.to_thread(_unscored, block, model.completions)
        if not completions:
            return []
        began, clock = time.time(), time.perf_counter()
        rows = await self._committed_rows(self._scorer, model, completions)
        facts, counts = self._new_provenance(self._scorer)
        report: BlockReport = {
            "stage": self._stage,
            "model": block.model,
            "num_prompts": len(rows),
            "num_completions": sum(len(row.scores) for row in rows),
            "num_tokens": 0,
            "num_errors": sum(error not in (None, NOT_VALIDATED) for row in rows for error in row.errors),
            "start_seconds": 0.0,
            "began": began,
            "ended": time.time(),
            "seconds": time.perf_counter() - clock,
            "device": self._scorer.device,
            "measured": {"scorer": facts},
            "scorer_counts": counts,
        }
        count_block(self._run, report)
        return [report]

    async def _committed_rows(
        self, scorer: Scorer, model: PipelineModel, completions: Sequence[Completions]
    ) -> list[Scores]:
        """Score the completions and commit the rows as one file, unless an earlier process committed it."""
        name = block_file_name(model.model, [row.prompt_id for row in completions])
        work = f"{self._stage}/{model.model}/{name}"
        num_deaths, has_ended = await asyncio.to_thread(self._ledger.begin, work)
        if (num_deaths or has_ended) and await asyncio.to_thread(model.scores.exists, name):
            rows = from_table(await asyncio.to_thread(model.scores.read_table, name), Scores)
        elif num_deaths >= MAX_DEATHS:
            raise StageError(f"{self._stage}: the scorer's process died {num_deaths} times with the texts of {name}")
        else:
            rows = await score_rows(scorer, completions, self._section.empty_text)
            await asyncio.to_thread(model.scores.write_parquet, name, to_table(rows, Scores))
        self._ledger.end(work)
        return rows

    def _new_provenance(self, scorer: Scorer) -> tuple[dict[str, Any], dict[str, float]]:
        """Return what the scorer is, and what it has counted since the last call."""
        provenance = scorer.provenance() | {"validated": list(scorer.validated)}
        total = {
            name: value for name, value in provenance.items() if name.startswith("num_") or name.endswith("_seconds")
        }
        new = {name: value - self._counted.get(name, 0) for name, value in total.items()}
        self._counted = total
        return {name: value for name, value in provenance.items() if name not in total}, new


def _unscored(block: UnscoredBlock, completions: Folder) -> list[Completions]:
    """Return the completions of the block that have no scores yet."""
    scored = set(block.scored_ids)
    table = completions.read_table(block.file).slice(block.start, block.stop - block.start)
    return [row for row in from_table(table, Completions) if row.prompt_id not in scored]
