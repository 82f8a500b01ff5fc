"""Score rows of completions, and texts of several languages, with any scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xgray.config import Switch
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES, Completions, Scores, from_table, schema
from xgray.runs.progress import OnProgress
from xgray.runs.resolved import load_run
from xgray.score.scorer import Scored, Scorer, score_texts
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import numpy as np

TEXTS_PER_REPORT = 256
"""Texts that are scored between two reports of progress."""


def read_completions(run: Folder) -> list[Completions]:
    """Return the completions of all models of a run that exist so far.

    Raises:
        InputError: the folder holds no run, or the run has no completions.
    """
    load_run(run)
    tables = [
        (run / "generate" / model / "rows").read_parquet(schema(Completions)) for model in (run / "generate").names()
    ]
    rows = [row for table in tables for row in from_table(table, Completions)]
    if not rows:
        raise InputError(f"{run}: no completions yet. Make them with xgray generate")
    return rows


def group_by_model(rows: Sequence[Completions]) -> list[list[Completions]]:
    """Return the rows of each model, models and rows in order of appearance."""
    return [[row for row in rows if row.model == model] for model in dict.fromkeys(row.model for row in rows)]


async def score_rows(scorer: Scorer, completions: Sequence[Completions], empty_text: Switch) -> list[Scores]:
    """Return one row of scores for each row of completions of one model, in order.

    All texts of a language go to the scorer in one call.
    """
    by_language: dict[str, list[Completions]] = {}
    for row in completions:
        by_language.setdefault(row.language, []).append(row)
    by_prompt: dict[str, Scores] = {}
    for language, rows in by_language.items():
        texts = [text for row in rows for text in row.completions]
        remaining = iter(await score_texts(scorer, texts, language, empty_text))
        for row in rows:
            results = [next(remaining) for _ in row.completions]
            by_prompt[row.prompt_id] = Scores(
                prompt_id=row.prompt_id,
                language=language,
                model=row.model,
                scores=[dict.fromkeys(ATTRIBUTES) | (result.scores or {}) for result in results],
                errors=[result.error for result in results],
                scorer=scorer.name,
                scorer_version=scorer.version,
            )
    return [by_prompt[row.prompt_id] for row in completions]


@contextmanager
def scorer_runner(scorer: Scorer) -> Iterator[asyncio.Runner]:
    """Run everything with the scorer in one event loop, to which its connections belong, and close the scorer after."""
    with asyncio.Runner() as runner:
        try:
            yield runner
        finally:
            runner.run(scorer.close())


def score_by_language(
    runner: asyncio.Runner, scorer: Scorer, texts: Mapping[str, Sequence[str]], on_progress: OnProgress
) -> dict[str, dict[str, Scored]]:
    """Score the texts of each language and return the results by language and text."""
    total = sum(len(in_language) for in_language in texts.values())
    results: dict[str, dict[str, Scored]] = {language: {} for language in texts}

    async def work() -> None:
        num_done = 0
        on_progress("score", num_done, total)
        for language, in_language in texts.items():
            for start in range(0, len(in_language), TEXTS_PER_REPORT):
                part = in_language[start : start + TEXTS_PER_REPORT]
                scored = await score_texts(scorer, part, language, "corrected")
                results[language] |= dict(zip(part, scored, strict=True))
                num_done += len(part)
                on_progress("score", num_done, total)

    runner.run(work())
    return results


def score_completions(
    runner: asyncio.Runner,
    scorer: Scorer,
    rows: Sequence[Completions],
    empty_text: Switch,
    label: str = "score",
    on_progress: OnProgress = lambda label, done, total, errors=0: None,
) -> list[Scores]:
    """Score rows of completions of any models, reporting progress under ``label``."""

    async def work() -> list[Scores]:
        scores: list[Scores] = []
        most_completions = max(len(row.completions) for row in rows)  # 0 if every prompt has failed
        num_rows = max(1, TEXTS_PER_REPORT // max(1, most_completions))
        for start in range(0, len(rows), num_rows):
            for same_model in group_by_model(rows[start : start + num_rows]):
                scores += await score_rows(scorer, same_model, empty_text)
            on_progress(label, len(scores), len(rows))
        return scores

    return runner.run(work())


def attribute_column(results: Sequence[Scored], attribute: str) -> np.ndarray:
    """Return the ``(n,)`` scores of one attribute, NaN where one is missing."""
    import numpy as np

    values = [(result.scores or {}).get(attribute) for result in results]
    return np.array([np.nan if value is None else value for value in values])
