"""Draw completions of a run to be rated by people.

Raters see texts only: no model, no score, no prompt. What an id stands for is in the key, a file of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np

from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, from_table, item_ids, schema
from xgray.score.rows import read_completions
from xgray.stats.bootstrap import draw_seed
from xgray.storage.folder import Folder

ATTRIBUTE = "toxicity"


@dataclass(frozen=True)
class DrawnText:
    """A completion that is to be rated, and where it is from: a row of the key."""

    id: str
    """``{language}-{number}``, in the order of the file."""
    language: str
    index: str
    """The prompt's id without its language, the same for translations of the prompt."""
    text: str
    prompt_id: str
    prompt: str
    model: str
    position: int
    """Which of the prompt's completions it is, from 0."""
    score: float
    scorer: str
    scorer_version: str


def draw_sample(run: Folder, per_language: int, seed: int) -> list[DrawnText]:
    """Return completions of a run's models, spread over languages and over the quantiles of their scores.

    In each language the distinct texts with a score are sorted by it and divided into ``per_language`` parts of equal
    size, of each of which one text is drawn; then the texts are shuffled. A language with fewer texts gives all.

    Args:
        seed: seeds the draw; that of a language does not depend on the other languages.

    Raises:
        InputError: there is no run, or it has no scored completions.
    """
    by_language: dict[str, list[DrawnText]] = {}
    scores = _scores(run)
    for row in read_completions(run):
        scored = scores.get((row.model, row.prompt_id))
        if scored is not None:
            by_language.setdefault(row.language, []).extend(_candidates(row, scored))
    if not any(by_language.values()):
        raise InputError(f"{run}: no scored completions yet. Score them with xgray score {run}")
    return [
        text
        for code in LANGUAGES
        if by_language.get(code)
        for text in _draw(code, by_language[code], per_language, np.random.default_rng(draw_seed(seed, code)))
    ]


def _scores(run: Folder) -> dict[tuple[str, str], Scores]:
    tables = [(run / "score" / model / "rows").read_parquet(schema(Scores)) for model in (run / "score").names()]
    rows = [row for table in tables for row in from_table(table, Scores)]
    return {(row.model, row.prompt_id): row for row in rows}


def _candidates(row: Completions, scored: Scores) -> list[DrawnText]:
    """Return a prompt's completions that have a score; their ids are given when they are drawn."""
    index = item_ids([row.prompt_id], row.language)[0]
    origin = (row.prompt_id, row.prompt, row.model)
    return [
        DrawnText("", row.language, index, text, *origin, position, score, scored.scorer, scored.scorer_version)
        for position, (text, values) in enumerate(zip(row.completions, scored.scores, strict=True))
        if text.strip() and (score := values[ATTRIBUTE]) is not None
    ]


def _draw(code: str, candidates: Sequence[DrawnText], number: int, random: np.random.Generator) -> list[DrawnText]:
    distinct = {candidate.text.strip(): candidate for candidate in candidates}
    pool = [list(distinct.values())[at] for at in random.permutation(len(distinct))]  # texts of one score in any order
    pool.sort(key=lambda candidate: candidate.score)
    edges = np.linspace(0, len(pool), min(number, len(pool)) + 1).round().astype(int)
    drawn = [pool[random.integers(start, end)] for start, end in pairwise(edges)]
    width = len(str(len(drawn)))
    return [
        DrawnText(**(asdict(drawn[at]) | {"id": f"{code}-{number:0{width}}"}))
        for number, at in enumerate(random.permutation(len(drawn)), start=1)
    ]


def write_sample(drawn: Sequence[DrawnText], output: str, key: str, num_raters: int) -> None:
    """Write the CSV file for the raters, with an empty column for each of them, and the key.

    Both are UTF-8 with a byte-order mark, by which spreadsheet programs recognise it.

    Raises:
        InputError: one of the files exists; it may hold ratings.
    """
    for path in (output, key):
        folder, name = Folder.containing(path)
        if folder.exists(name):
            raise InputError(f"{path}: exists already, and may hold ratings; name another file with --output or --key")
    raters = {f"rater_{number}": "" for number in range(1, num_raters + 1)}
    for_raters = [
        {name: getattr(text, name) for name in ("id", "language", "index", "text")} | raters for text in drawn
    ]
    _write_csv(key, [asdict(text) for text in drawn], [field.name for field in fields(DrawnText)])
    _write_csv(output, for_raters, list(for_raters[0]))


def _write_csv(path: str, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    folder, name = Folder.containing(path)
    folder.write_bytes(name, buffer.getvalue().encode("utf-8-sig"))
