"""The actors of the pipeline: each commits what it made before it passes it on."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xgray.config import Generate, Score
from xgray.distributed.failures import Failure
from xgray.distributed.quota import shared_scorer
from xgray.generate.build import build_engine
from xgray.generate.engine import Engine, EngineName, Weights, complete
from xgray.models import device_name
from xgray.rows import Completions, Prompt, Scores, to_table
from xgray.score.rows import score_rows
from xgray.score.scorer import Scorer
from xgray.storage import Folder

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset

    Batch = dict[str, np.ndarray]

Block = dict[str, Any]
"""Some prompts of one model: ``model``, ``rows`` (prompts, then their completions), ``scored`` (the ids of those that
have scores already) and ``parts`` (what each actor has to say of its work). Or a ``failure``, which is passed on."""


@dataclass(frozen=True)
class Place:
    """Where a model's weights are, and where its rows go."""

    weights: Weights
    adapter: str | None
    completions: Folder
    scores: Folder


Places = dict[str, Place]
"""By model."""


def dataset(blocks: Sequence[Block]) -> Dataset:
    """Blocks as rows of a Ray dataset: one JSON text each, so that no column type depends on what a block holds."""
    import ray

    texts = [{"block": json.dumps(block)} for block in blocks]
    return ray.data.from_items(texts, override_num_blocks=len(texts))


def parts_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the actors said, from a row that left the pipeline.

    Raises:
        XgrayError: one of them failed.
    """
    block: Block = json.loads(row["block"])
    if "failure" in block:
        raise Failure(**block["failure"]).error()
    parts: list[dict[str, Any]] = block["parts"]
    return parts


def file_name(rows: Sequence[Completions] | Sequence[Scores]) -> str:
    """The name of the file that holds these rows: the same prompts of a model always make the same file."""
    ids = "\n".join([rows[0].model, *(row.prompt_id for row in rows)])
    return f"{hashlib.sha256(ids.encode()).hexdigest()[:24]}.parquet"


def _decode(batch: Batch) -> Block:
    (text,) = batch["block"].tolist()
    block: Block = json.loads(text)
    return block


def _encode(block: Block) -> Batch:
    import numpy as np

    return {"block": np.array([json.dumps(block)], dtype=object)}


class GenerateActor:
    """Holds one engine, for all languages and for all models that share its base weights.

    The engine starts with the first block; models of other weights follow each other in it.
    """

    def __init__(self, engine: EngineName, section: Generate, seed: int, places: Places) -> None:
        self._name = engine
        self._section = section
        self._seed = seed
        self._places = places
        self._engine: Engine | None = None
        self._loaded: Weights | None = None
        self._device = device_name()

    def _engine_of(self, weights: Weights) -> tuple[Engine, float]:
        """The engine with these weights, and the seconds that it took to start now."""
        if self._engine is not None and self._loaded == weights:
            return self._engine, 0.0
        began = time.perf_counter()
        self._engine = None
        gc.collect()  # two engines need not find room together
        self._engine = build_engine(self._name, weights, self._section)
        self._loaded = weights
        return self._engine, time.perf_counter() - began

    def __call__(self, batch: Batch) -> Batch:
        try:
            return _encode(self._sample(_decode(batch)))
        except Exception as error:
            traceback.print_exc()
            return _encode({"failure": asdict(Failure.of(error))})

    def _sample(self, block: Block) -> Block:
        place = self._places[block["model"]]
        engine, start_seconds = self._engine_of(place.weights)
        began = time.time()
        prompts = [Prompt(**row) for row in block["rows"]]
        rows = complete(engine, prompts, block["model"], place.adapter, self._seed)
        place.completions.write_parquet(file_name(rows), to_table(rows, Completions))
        part = {
            "stage": "generate",
            "model": block["model"],
            "num_prompts": len(rows),
            "num_completions": sum(len(row.completions) for row in rows),
            "num_tokens": sum(sum(row.token_counts) for row in rows),
            "num_errors": 0,
            "start_seconds": start_seconds,
            "began": began,
            "ended": time.time(),
            "device": self._device,
            "measured": {"engine": self._name},
        }
        return block | {"rows": [asdict(row) for row in rows], "parts": [part]}


class ScoreActor:
    """Holds one scorer, built with the first block; several blocks are under way at once."""

    def __init__(self, section: Score, places: Places) -> None:
        self._section = section
        self._places = places
        self._scorer: Scorer | None = None
        self._building = asyncio.Lock()
        self._counted: dict[str, int] = {}

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        block = _decode(batch)
        if "failure" not in block:
            try:
                block = await self._score(block)
            except Exception as error:
                traceback.print_exc()
                block = {"failure": asdict(Failure.of(error))}
        yield _encode(block)

    async def _score(self, block: Block) -> Block:
        async with self._building:
            if self._scorer is None:
                self._scorer = await asyncio.to_thread(shared_scorer, self._section)
        completions = [Completions(**row) for row in block["rows"] if row["prompt_id"] not in block["scored"]]
        if not completions:
            return {"parts": block["parts"]}
        began = time.time()
        rows = await score_rows(self._scorer, completions, self._section.empty_text)
        self._places[block["model"]].scores.write_parquet(file_name(rows), to_table(rows, Scores))
        facts, counts = self._told(self._scorer)
        part = {
            "stage": "score",
            "model": block["model"],
            "num_prompts": len(rows),
            "num_completions": sum(len(row.scores) for row in rows),
            "num_tokens": 0,
            "num_errors": sum(error is not None for row in rows for error in row.errors),
            "start_seconds": 0.0,
            "began": began,
            "ended": time.time(),
            "device": self._scorer.device,
            "measured": {"scorer": facts},
            "scorer_counts": counts,
        }
        return {"parts": [*block["parts"], part]}

    def _told(self, scorer: Scorer) -> tuple[dict[str, Any], dict[str, int]]:
        """What the scorer is, and what it has counted since this was last asked."""
        told = scorer.provenance() | {"validated": list(scorer.validated)}
        total = {name: value for name, value in told.items() if name.startswith("num_")}
        new = {name: value - self._counted.get(name, 0) for name, value in total.items()}
        self._counted = total
        return {name: value for name, value in told.items() if name not in total}, new
