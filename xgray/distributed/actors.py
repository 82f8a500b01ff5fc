"""What the pipeline's actors share, and the one that scores. Each commits its rows before it passes a block on."""

from __future__ import annotations

import asyncio
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
from xgray.distributed.metrics import BlockReport, count_block
from xgray.distributed.rate_limit import shared_scorer
from xgray.errors import StageError
from xgray.generate.engine import EngineName, Weights
from xgray.mechanism.neurons import Edit
from xgray.rows import NOT_VALIDATED, Completions, Scores, from_table, to_table
from xgray.runs.blocks import UnscoredBlock, block_file_name
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
    scorer_gpu: float | None = None
    """The part of an engine's GPU that a scorer takes, where they share one."""


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


def decode_item(batch: Batch) -> Item:
    """Return the item of a batch of one row of :func:`dataset`."""
    (text,) = batch["item"].tolist()
    item: Item = json.loads(text)
    return item


def encode_item(item: Item) -> Batch:
    """Return the batch of one row that :func:`decode_item` reads."""
    import numpy as np

    return {"item": np.array([json.dumps(item)], dtype=object)}


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
        item = decode_item(batch)
        if "failure" not in item:
            try:
                item = {"parts": [*item["parts"], *await self._score(UnscoredBlock(**item["made"]))]}
            except Exception as error:
                traceback.print_exc()
                item = {"failure": asdict(Failure.of(error))}
        yield encode_item(item)

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
