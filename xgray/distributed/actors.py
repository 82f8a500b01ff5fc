"""The actors of the pipeline: each commits what it made before it passes it on."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xgray.config import Generate, Score
from xgray.generate.engine import EngineName, Weights, build_engine, complete
from xgray.rows import Completions, Prompt, Scores, to_table
from xgray.score.rows import score_rows
from xgray.storage import Folder

if TYPE_CHECKING:
    import numpy as np
    from ray.data import Dataset

    Batch = dict[str, np.ndarray]

Places = dict[str, tuple[Folder, Folder, str | None]]
"""By model: where its completions and its scores go, and its adapter."""


class Blocks:
    """Blocks as rows of a Ray dataset: one JSON text each, so that no column type depends on what a block holds."""

    def dataset(self, blocks: Sequence[dict[str, Any]]) -> Dataset:
        import ray

        texts = [
            {"block": encode(block | {"rows": [asdict(row) for row in block["rows"]], "parts": []})} for block in blocks
        ]
        return ray.data.from_items(texts, override_num_blocks=len(texts))

    def parts(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = json.loads(row["block"])["parts"]
        return parts


def encode(block: dict[str, Any]) -> str:
    return json.dumps(block)


def decode(batch: Batch) -> dict[str, Any]:
    (text,) = batch["block"].tolist()
    block: dict[str, Any] = json.loads(text)
    return block


def encoded(block: dict[str, Any]) -> Batch:
    import numpy as np

    return {"block": np.array([encode(block)], dtype=object)}


class GenerateActor:
    """Holds one engine, for all languages and for all models that share its base weights."""

    def __init__(self, weights: Weights, engine: EngineName, section: Generate, seed: int, places: Places) -> None:
        import torch

        began = time.perf_counter()
        self._engine = build_engine(engine, weights, section)
        self._measured = {"engine": engine, "engine_start_seconds": round(time.perf_counter() - began, 1)}
        self._seed = seed
        self._places = places
        cuda = torch.cuda.is_available()
        self._device = torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)"

    def __call__(self, batch: Batch) -> Batch:
        block = decode(batch)
        folder, _, adapter = self._places[block["model"]]
        began = time.time()
        prompts = [Prompt(**row) for row in block["rows"]]
        rows = complete(self._engine, prompts, block["model"], adapter, self._seed)
        folder.write_parquet(block["file"], to_table(rows, Completions))
        part = {
            "stage": "generate",
            "model": block["model"],
            "num_prompts": len(rows),
            "num_completions": sum(len(row.completions) for row in rows),
            "num_tokens": sum(sum(row.token_counts) for row in rows),
            "num_errors": 0,
            "began": began,
            "ended": time.time(),
            "device": self._device,
            "measured": self._measured,
        }
        return encoded(block | {"rows": [asdict(row) for row in rows], "parts": [part]})


class ScoreActor:
    """Holds one scorer; several blocks are under way at once."""

    def __init__(self, section: Score, places: Places) -> None:
        from xgray.score.build import build_scorer

        self._scorer = build_scorer(section)
        self._places = places

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        block = decode(batch)
        _, folder, _ = self._places[block["model"]]
        began = time.time()
        completions = [Completions(**row) for row in block["rows"]]
        rows = await score_rows(self._scorer, completions)
        folder.write_parquet(block["file"], to_table(rows, Scores))
        part = {
            "stage": "score",
            "model": block["model"],
            "num_prompts": len(rows),
            "num_completions": sum(len(row.scores) for row in rows),
            "num_tokens": 0,
            "num_errors": sum(error is not None for row in rows for error in row.errors),
            "began": began,
            "ended": time.time(),
            "device": "",
            "measured": {"scorer": self._scorer.provenance()},
        }
        yield encoded({"parts": [*block["parts"], part]})
