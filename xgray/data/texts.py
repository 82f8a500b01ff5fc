"""Texts to be scored, from a file of any kind: CSV, JSON lines or Parquet with a column of texts, or plain lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgray.data.archives.answers import read_texts
from xgray.data.archives.rows import first_row, read_rows
from xgray.data.archives.table import LANGUAGE_COLUMNS, TEXT_COLUMNS
from xgray.errors import InputError
from xgray.languages import language

TEXT_FILES = (".csv", ".jsonl", ".json", ".parquet", ".txt")


@dataclass(frozen=True)
class TextColumns:
    """Where a file has its texts and their languages, as far as the user says it."""

    text: str | None = None
    """The column of texts; by default ``text``, ``comment_text`` or ``comment``."""
    language: str | None = None
    """The column of languages; by default ``language`` or ``lang``."""
    all_in: str | None = None
    """The language of all texts."""


def read_text_file(file: Path, columns: TextColumns) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each row or line; empty texts too, so that positions stay.

    Raises:
        InputError: the file cannot be read, a column is missing, or a row has no text or an unknown language.
    """
    all_in = language(columns.all_in).code if columns.all_in else None
    if file.suffix == ".txt":
        if all_in is None:
            raise InputError(f"{file}: plain lines do not say their language; name it: --language CODE")
        yield from ((all_in, text) for text in read_texts(file))
        return
    found = list(first_row(file))
    text_column = _column(file, found, columns.text, TEXT_COLUMNS, "texts", "--text-column COLUMN")
    remedy = "--language-column COLUMN, or the language of all texts: --language CODE"
    language_column = None if all_in else _column(file, found, columns.language, LANGUAGE_COLUMNS, "languages", remedy)
    for where, row in read_rows(file, dict[str, Any]):
        text, code = row.get(text_column), all_in or row.get(language_column or "")
        if not isinstance(text, str) or not isinstance(code, str):
            wrong = text_column if not isinstance(text, str) else language_column
            raise InputError(f"{where}: {wrong} must be text; fields of this row: {', '.join(row)}")
        try:
            yield language(code).code, text
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


def _column(file: Path, found: list[str], named: str | None, usual: tuple[str, ...], kind: str, remedy: str) -> str:
    column = next((name for name in ((named,) if named else usual) if name in found), None)
    if column is None:
        missing = f"no column {named!r}" if named else f"no column of {kind}"
        raise InputError(f"{file}: {missing}; columns found: {', '.join(found)}. Name it: {remedy}")
    return column
