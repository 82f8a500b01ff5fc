"""Tables with a column of texts and columns of scores: CSV, Parquet, or JSON lines of plain fields.

A column of scores is known by its attribute's name in any case; Google's sample adds the version of its model:
``TOXICITY@6``. Where a table holds two versions of an attribute, the newest of each are one model, the others another,
and their scores are kept apart. Columns of other names are named by the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgray.data.archives.archived import (
    ATTRIBUTE_NAMES,
    EMPTY,
    ArchivedText,
    ArchiveOptions,
    check_scores,
    known_language,
)
from xgray.data.archives.rows import first_row, read_rows
from xgray.errors import InputError
from xgray.languages import language

TEXT_COLUMNS = ("text", "comment_text", "comment")
SCORE_COLUMN = "score"
"""A column of this name is toxicity."""
LANGUAGE_COLUMNS = ("language", "lang")
DATE_COLUMNS = ("scored", "scored_at")
VERSIONED = re.compile(r"([A-Za-z_]+)(?:@(\d+))?")


@dataclass(frozen=True)
class ScoreColumns:
    """The columns of one text's scores by one model."""

    text: str
    scores: dict[str, str]
    """The column of each attribute."""
    language: str | None
    """The language of the texts; None where a column says it."""
    model: str | None


def read_table(file: Path, options: ArchiveOptions) -> Iterator[ArchivedText]:
    """Yield the texts of a table, a text for each row and column of texts, and again for each model.

    Raises:
        InputError: columns are missing, two claim one attribute, or a row lacks a score or has one that is none.
    """
    found = list(first_row(file))
    groups = find_columns(file, found, options)
    language_column = options.language_column or _first(LANGUAGE_COLUMNS, found)
    date_column = _first(DATE_COLUMNS, found)
    for where, row in read_rows(file, dict[str, Any]):
        for group in groups:
            text = _cell(row, group.text, where)
            if not isinstance(text, str):
                raise InputError(f"{where}: {group.text} must be text, not {text!r}")
            scores = {name: _number(row, column, where) for name, column in group.scores.items()}
            check_scores(scores, where)
            code = group.language or _row_language(row, language_column, where)
            if not text.strip():
                options.left_out[EMPTY] += 1
            elif code is None:
                options.left_out[f"language {row[language_column or '']}"] += 1
            else:
                scored = str(row[date_column])[:10] if date_column and row.get(date_column) else None
                yield ArchivedText(text, code, scores, tuple(scores), group.model, scored)


def find_columns(file: Path, found: Sequence[str], options: ArchiveOptions) -> list[ScoreColumns]:
    """Return the columns to read, as the user named them or by their names.

    Raises:
        InputError: a column is missing, or it is not clear which columns hold texts and scores.
    """
    texts = list(options.text_columns) or [name for name in [_first(TEXT_COLUMNS, found)] if name]
    named = [_named(column) for column in options.score_columns]
    wanted = [*texts, *(column for _, column in named), *([options.language_column] if options.language_column else [])]
    if missing := [name for name in wanted if name not in found]:
        raise InputError(f"{file}: no column {missing[0]!r}; columns found: {', '.join(found)}")
    if not texts:
        raise InputError(f"{file}: no column of texts; columns found: {', '.join(found)}. {_REMEDY}")
    if len(texts) > 1:
        if len(named) != len(texts):
            raise InputError(f"{file}: {len(texts)} --text-column and {len(named)} --score-column; each text needs one")
        languages = _languages(file, found, options, len(texts))
        return [
            ScoreColumns(text, {attribute: column}, code, None)
            for text, (attribute, column), code in zip(texts, named, languages, strict=True)
        ]
    by_model: list[tuple[str | None, dict[str, str]]] = [(None, dict(named))] if named else _by_model(file, found)
    if len(named) > len(dict(named)):
        raise InputError(f"{file}: two columns for one attribute; write --score-column ATTRIBUTE=COLUMN for each")
    (code,) = _languages(file, found, options, 1)
    return [ScoreColumns(texts[0], dict(sorted(scores.items())), code, model) for model, scores in by_model]


_REMEDY = "Name them: --text-column COLUMN --score-column COLUMN --language CODE"


def _named(column: str) -> tuple[str, str]:
    """Return the attribute and the column of ``ATTRIBUTE=COLUMN`` or ``COLUMN``."""
    attribute, equals, name = column.partition("=")
    if equals and attribute.lower() in ATTRIBUTE_NAMES:
        return attribute.lower(), name
    return (column.lower() if column.lower() in ATTRIBUTE_NAMES else "toxicity"), column


def _by_model(file: Path, found: Sequence[str]) -> list[tuple[str | None, dict[str, str]]]:
    """Return the columns of scores that go by their attributes' names: of the newest models, then of older ones."""
    versions: dict[str, list[tuple[int, str]]] = {}
    for name in found:
        match = VERSIONED.fullmatch(name)
        if match and match[1].lower() in ATTRIBUTE_NAMES:
            versions.setdefault(match[1].lower(), []).append((int(match[2] or 0), name))
    if not versions:
        if SCORE_COLUMN in found:
            return [(None, {"toxicity": SCORE_COLUMN})]
        raise InputError(f"{file}: no column of scores; columns found: {', '.join(found)}. {_REMEDY}")
    groups: list[tuple[str | None, dict[str, str]]] = []
    for age in range(max(len(columns) for columns in versions.values())):
        columns = {name: sorted(listed, reverse=True)[age] for name, listed in versions.items() if len(listed) > age}
        if twice := [name for name, (version, _) in columns.items() if len(versions[name]) > 1 and not version]:
            both = " and ".join(repr(column) for _, column in versions[twice[0]])
            raise InputError(
                f"{file}: two versions of {twice[0]}, one without a number: {both}; keep one of the columns"
            )
        model = "+".join(column for version, column in columns.values() if version)
        groups.append((model or None, {name: column for name, (_, column) in columns.items()}))
    return groups


def _languages(file: Path, found: Sequence[str], options: ArchiveOptions, num_texts: int) -> list[str | None]:
    """Return the language of each column of texts, None where a column of languages says it."""
    codes = [language(code).code for code in options.languages]
    if not codes:
        if options.language_column or _first(LANGUAGE_COLUMNS, found):
            return [None] * num_texts
        raise InputError(
            f"{file}: no column of languages; columns found: {', '.join(found)}. Name it: --language-column COLUMN, or "
            "name the texts' language: --language CODE"
        )
    if len(codes) == 1:
        codes *= num_texts
    if len(codes) != num_texts:
        raise InputError(f"{file}: {num_texts} columns of texts and {len(codes)} languages; give --language for each")
    return list(codes)


def _first(names: Sequence[str], found: Sequence[str]) -> str | None:
    return next((name for name in names if name in found), None)


def _row_language(row: dict[str, Any], column: str | None, where: str) -> str | None:
    return known_language(str(_cell(row, column or "", where)))


def _cell(row: dict[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise InputError(f"{where}: no field {column!r}; fields of this row: {', '.join(row)}")
    return row[column]


def _number(row: dict[str, Any], column: str, where: str) -> float:
    value = _cell(row, column, where)
    try:
        return float(value)
    except (TypeError, ValueError):
        problem = f"{column} is {value!r}, not a number from 0 to 1"
        raise InputError(f"{where}: {problem}; take the row out, or give it its score") from None
