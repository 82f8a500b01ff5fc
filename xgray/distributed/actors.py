"""The actors of the pipeline: each commits what it made before it passes it on."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xgray.config import Generate, Score
from xgray.distributed.crash_ledger import MAX_DEATHS, CrashLedgerClient
from xgray.distributed.failures import Failure
from xgray.distributed.keys import take_keys
from xgray.distributed.metrics import count_block
from xgray.distributed.rate_limit import shared_scorer
from xgray.errors import StageError
from xgray.generate.build import build_engine
from xgray.generate.engine import Engine, EngineName, Weights
from xgray.generate.isolate import PROBE, complete_isolated, failed
from xgray.mechanism.neurons import Edit
from xgray.models.load import device_name
from xgray.rows import Completions, Prompt, Scores, from_table, to_table
from xgray.runs.blocks import MadeBlock, NewBlock, file_name
from xgray.runs.prompts import PromptFile
from xgray.score.rows import score_rows
from xgray.score.scorer import Scorer
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset

    Batch = dict[str, np.ndarray]

MAX_TASKS = 4096
"""Ray's tasks in one flow, each of which costs the driver memory; above it, several blocks go in one, one by one."""

Item = dict[str, Any]
"""What passes through the pipeline for a block: ``new`` or ``made`` (the block itself) and ``parts`` (what each actor
has to say of its work). Or a ``failure``, which is passed on. Rows pass on disk alone, so that a node that vanishes
takes none with it."""


@dataclass(frozen=True)
class Place:
    """Where a model's weights are, and where its rows go."""

    weights: Weights
    adapter: str | None
    completions: Folder
    scores: Folder
    edit: Edit | None = None


Places = dict[str, Place]
"""By model."""


def dataset(items: Sequence[Item]) -> Dataset:
    """Items as rows of a Ray dataset: one JSON text each, so that no column type depends on what one holds."""
    import ray

    texts = [{"item": json.dumps(item)} for item in items]
    return ray.data.from_items(texts, override_num_blocks=min(len(texts), MAX_TASKS))


def parts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the actors said, from a row that left the pipeline.

    Raises:
        XgrayError: one of them failed.
    """
    item: Item = json.loads(row["item"])
    if "failure" in item:
        raise Failure(**item["failure"]).error()
    parts: list[dict[str, Any]] = item["parts"]
    return parts


def _decode(batch: Batch) -> Item:
    (text,) = batch["item"].tolist()
    item: Item = json.loads(text)
    return item


def _encode(item: Item) -> Batch:
    import numpy as np

    return {"item": np.array([json.dumps(item)], dtype=object)}


class GenerateActor:
    """Holds one engine, for all languages and for all models that share its base weights.

    The engine starts with the first block; models of other weights follow each other in it.
    """

    def __init__(
        self, engine: EngineName, section: Generate, seed: int, run: Folder, places: Places, ledger: CrashLedgerClient
    ) -> None:
        take_keys()  # of the hub, where the weights come from there
        self._name = engine
        self._section = section
        self._seed = seed
        self._run = run.name
        self._prompts = PromptFile(run)
        self._places = places
        self._ledger = ledger
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._start_seconds = 0.0
        self._device = "none" if engine == "dummy" else device_name()

    def _engine_of(self, place: Place, anew: bool) -> Engine:
        """The engine with the place's weights, its neurons edited as there; a new one where ``anew``."""
        if self._engine is None or self._loaded != place.weights or anew:
            self._engine = self._start(place.weights)
        self._engine.edit(place.edit)
        return self._engine

    def _start(self, weights: Weights) -> Engine:
        work = self._begin("start", f"as it started with {weights.path}")
        began = time.perf_counter()
        if self._engine is not None:
            try:
                self._engine.close()
            finally:  # a broken one may fail at that too; it is not to be closed again
                self._engine = None
            gc.collect()  # two engines need not find room together
        engine = build_engine(self._name, weights, self._section)
        self._loaded = weights
        self._start_seconds += time.perf_counter() - began
        self._ledger.end(work)
        return engine

    def _begin(self, what: str, said: str) -> str:
        """Note work that is this actor's own, and give up where its process died of it before, again and again."""
        import ray

        work = f"{what} {ray.get_runtime_context().get_actor_id()}"
        deaths, _ = self._ledger.begin(work)
        if deaths >= MAX_DEATHS:
            raise StageError(f"generate: the engine's process died {deaths} times {said}")
        return work

    def __call__(self, batch: Batch) -> Batch:
        item = _decode(batch)
        try:
            return _encode(self._sample(NewBlock(**item["new"])))
        except Exception as error:
            traceback.print_exc()
            return _encode({"failure": asdict(Failure.of(error))})

    def _sample(self, block: NewBlock) -> Item:
        place = self._places[block.model]
        self._start_seconds = 0.0
        self._engine_of(place, False)
        start_seconds, began = self._start_seconds, time.time()
        clock = time.perf_counter()
        skipped = set(block.skip)
        prompts = [one for one in self._prompts.read(block.start, block.stop) if one.prompt_id not in skipped]
        name = file_name(block.model, [prompt.prompt_id for prompt in prompts])
        work = f"generate/{block.model}/{name}"
        deaths, ended = self._ledger.begin(work)
        if (deaths or ended) and place.completions.exists(name):
            rows = from_table(place.completions.read_table(name), Completions)
        else:
            rows = self._rows(block.model, prompts, place, work if deaths else None)
            place.completions.write_parquet(name, to_table(rows, Completions))
        self._ledger.end(work)
        part = {
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
            "measured": {"engine": self._name},
        }
        count_block(self._run, part)
        made = MadeBlock(block.model, name, 0, len(rows), block.scored)
        return {"made": asdict(made), "parts": [part]}

    def _rows(self, model: str, prompts: list[Prompt], place: Place, suspect: str | None) -> list[Completions]:
        """The rows of the prompts; one prompt at a time where a process has died with them (``suspect``)."""

        def engine(anew: bool) -> Engine:
            return self._engine_of(place, anew)

        if suspect is None:
            return complete_isolated(engine, prompts, model, place.adapter, self._seed)
        rows = []
        for prompt in prompts:
            work = f"{suspect} {prompt.prompt_id}"
            deaths, _ = self._ledger.begin(work)
            if deaths >= 2:
                probing = self._begin("probe", f"with {PROBE!r} as with {prompt.prompt_id}: it is the engine's fault")
                engine(False).sample([PROBE], [self._seed], place.adapter)
                self._ledger.end(probing)
                rows.append(failed(prompt, model, f"the engine's process died {deaths} times with it alone"))
            else:
                rows += complete_isolated(engine, [prompt], model, place.adapter, self._seed)
            self._ledger.end(work)
        return rows


class ScoreActor:
    """Holds one scorer, built with the first block; several blocks are under way at once."""

    def __init__(self, section: Score, run: str, places: Places, ledger: CrashLedgerClient) -> None:
        self._section = section
        self._run = run
        self._places = places
        self._ledger = ledger
        self._scorer: Scorer | None = None
        self._building = asyncio.Lock()
        self._counted: dict[str, float] = {}

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        item = _decode(batch)
        if "failure" not in item:
            try:
                item = {"parts": [*item["parts"], *await self._score(MadeBlock(**item["made"]))]}
            except Exception as error:
                traceback.print_exc()
                item = {"failure": asdict(Failure.of(error))}
        yield _encode(item)

    async def _score(self, block: MadeBlock) -> list[dict[str, Any]]:
        async with self._building:
            if self._scorer is None:
                self._scorer = await asyncio.to_thread(shared_scorer, self._section)
        place = self._places[block.model]
        completions = await asyncio.to_thread(_unscored, block, place.completions)
        if not completions:
            return []
        began, clock = time.time(), time.perf_counter()
        name = file_name(block.model, [row.prompt_id for row in completions])
        work = f"score/{block.model}/{name}"
        deaths, ended = await asyncio.to_thread(self._ledger.begin, work)
        if (deaths or ended) and await asyncio.to_thread(place.scores.exists, name):
            rows = from_table(await asyncio.to_thread(place.scores.read_table, name), Scores)
        elif deaths >= MAX_DEATHS:
            raise StageError(f"score: the scorer's process died {deaths} times with the texts of {name}")
        else:
            rows = await score_rows(self._scorer, completions, self._section.empty_text)
            await asyncio.to_thread(place.scores.write_parquet, name, to_table(rows, Scores))
        self._ledger.end(work)
        facts, counts = self._told(self._scorer)
        part = {
            "stage": "score",
            "model": block.model,
            "num_prompts": len(rows),
            "num_completions": sum(len(row.scores) for row in rows),
            "num_tokens": 0,
            "num_errors": sum(error is not None for row in rows for error in row.errors),
            "start_seconds": 0.0,
            "began": began,
            "ended": time.time(),
            "seconds": time.perf_counter() - clock,
            "device": self._scorer.device,
            "measured": {"scorer": facts},
            "scorer_counts": counts,
        }
        count_block(self._run, part)
        return [part]

    def _told(self, scorer: Scorer) -> tuple[dict[str, Any], dict[str, float]]:
        """What the scorer is, and what it has counted since this was last asked."""
        told = scorer.provenance() | {"validated": list(scorer.validated)}
        total = {name: value for name, value in told.items() if name.startswith("num_") or name.endswith("_seconds")}
        new = {name: value - self._counted.get(name, 0) for name, value in total.items()}
        self._counted = total
        return {name: value for name, value in told.items() if name not in total}, new


def _unscored(block: MadeBlock, completions: Folder) -> list[Completions]:
    """The completions of the block that have no scores yet."""
    scored = set(block.scored)
    table = completions.read_table(block.file).slice(block.start, block.stop - block.start)
    return [row for row in from_table(table, Completions) if row.prompt_id not in scored]
