"""Rows of completions to rows of scores, with any scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xgray.config import Switch
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Completions, Scores, from_table, schema
from xgray.runs.resolved import load_run
from xgray.score.scorer import Scored, Scorer, score_texts
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import numpy as np


async def score_rows(scorer: Scorer, completions: Sequence[Completions], empty_text: Switch) -> list[Scores]:
    """One row of scores for each row of completions; all texts of a language go to the scorer together."""
    by_language: dict[str, list[Completions]] = {}
    for row in completions:
        by_language.setdefault(row.language, []).append(row)
    scored: dict[str, Scores] = {}
    for language, rows in by_language.items():
        texts = [text for row in rows for text in row.completions]
        results = iter(await score_texts(scorer, texts, language, empty_text))
        for row in rows:
            own = [next(results) for _ in row.completions]
            scored[row.prompt_id] = Scores(
                prompt_id=row.prompt_id,
                language=language,
                model=row.model,
                scores=[dict.fromkeys(ATTRIBUTES) | (one.scores or {}) for one in own],
                errors=[one.error for one in own],
                scorer=scorer.name,
                scorer_version=scorer.version,
            )
    return [scored[row.prompt_id] for row in completions]


OnProgress = Callable[[str, int, int], None]

TEXTS_AT_ONCE = 256
"""Of one language, between two reports of progress."""


def read_completions(run: Folder) -> list[Completions]:
    """The completions of all models of a run, as far as they are there.

    Raises:
        InputError: there is no run, or it has none.
    """
    load_run(run)
    tables = [
        (run / "generate" / model / "rows").read_parquet(schema(Completions)) for model in (run / "generate").names()
    ]
    rows = [row for table in tables for row in from_table(table, Completions)]
    if not rows:
        raise InputError(f"{run}: no completions yet; xgray generate makes them")
    return rows


@contextmanager
def scorer_runner(scorer: Scorer) -> Iterator[asyncio.Runner]:
    """One event loop for all that is asked of a scorer, whose connections belong to it; the scorer is closed after."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(scorer.close())


def score_by_language(
    runner: asyncio.Runner, scorer: Scorer, texts: dict[str, list[str]], on_progress: OnProgress
) -> dict[str, dict[str, Scored]]:
    """The scores of texts, by language and text."""
    total, found = sum(len(own) for own in texts.values()), {code: dict[str, Scored]() for code in texts}

    async def work() -> None:
        done = 0
        on_progress("score", done, total)
        for code, own in texts.items():
            for start in range(0, len(own), TEXTS_AT_ONCE):
                part = own[start : start + TEXTS_AT_ONCE]
                results = await score_texts(scorer, part, code, "corrected")
                found[code] |= dict(zip(part, results, strict=True))
                done += len(part)
                on_progress("score", done, total)

    runner.run(work())
    return found


def attribute_column(results: Sequence[Scored], attribute: str) -> np.ndarray:
    """``(n,)`` scores, NaN where one is missing."""
    import numpy as np

    values = [(one.scores or {}).get(attribute) for one in results]
    return np.array([np.nan if value is None else value for value in values])


def score_completions(
    runner: asyncio.Runner,
    scorer: Scorer,
    rows: Sequence[Completions],
    switch: Any,
    label: str,
    on_progress: OnProgress,
) -> list[Scores]:

    async def work() -> list[Scores]:
        found: list[Scores] = []
        most = max(len(row.completions) for row in rows)
        step = max(1, TEXTS_AT_ONCE // max(1, most))  # No completion at all where every prompt has failed.
        for start in range(0, len(rows), step):
            for own in group_by_model(rows[start : start + step]):
                found += await score_rows(scorer, own, switch)
            on_progress(label, len(found), len(rows))
        return found

    return runner.run(work())


def group_by_model(rows: Sequence[Completions]) -> list[list[Completions]]:
    return [[row for row in rows if row.model == model] for model in dict.fromkeys(row.model for row in rows)]
