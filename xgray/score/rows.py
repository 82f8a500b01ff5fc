"""Rows of completions to rows of scores, with any scorer."""

from __future__ import annotations

from collections.abc import Sequence

from xgray.config import Switch
from xgray.rows import ATTRIBUTES, Completions, Scores
from xgray.score.scorer import Scorer, score_texts


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
