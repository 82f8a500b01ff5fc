"""The forms of files of scores: which one a file has, and the entries that it holds.

PolygloToxicityPrompts, RealToxicityPrompts, answers, tables ──▶ xgray.data.archives ─┐
the paper's files, Jigsaw's labels, exports ──▶ xgray.score.store.import_export ──────┴─▶ rows ─▶ ScoreStore.put_rows
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from xgray.data.archives.answers import read_answers
from xgray.data.archives.archived import ArchivedText, ArchiveOptions, check_scored
from xgray.data.archives.polyglo_toxicity_prompts import read_polyglo
from xgray.data.archives.real_toxicity_prompts import read_real_toxicity_prompts
from xgray.data.archives.rows import SUFFIXES, first_row
from xgray.data.archives.table import read_table
from xgray.data.perspective_results import FILE_PREFIX
from xgray.data.source import plain_name, resolve_input
from xgray.errors import InputError
from xgray.score.perspective_versions import archived_id, known_date
from xgray.score.store.entry import ScoreEntry, archived_row
from xgray.score.store.import_export import read_jigsaw, read_parquet, read_perspective

log = logging.getLogger(__name__)

IN_FOLDERS = ("*.parquet", "*.csv", "*.jsonl", "*.csv.gz", "*.jsonl.gz", f"{FILE_PREFIX}*.json")
"""The files that are read of a folder. Others, such as its ``dataset_infos.json``, hold no scores."""


VersionedRow = tuple[str, bytes]
"""The scorer's version, and an entry in its stored form."""
RowReader = Callable[[Path, ArchiveOptions], Iterator[VersionedRow]]


@dataclass(frozen=True)
class Form:
    """A form of files of scores."""

    name: str
    description: str
    has_form: Callable[[dict[str, Any]], bool]
    """Whether a file with this first row has the form."""
    read: RowReader
    is_dated: bool = False
    """Whether the file itself says of what scorer its scores are."""


Reader = Callable[[Path, ArchiveOptions], Iterator[ArchivedText]]


def _rows(entries: Iterable[ScoreEntry]) -> Iterator[VersionedRow]:
    return ((entry.version, entry.row()) for entry in entries)


def _archived_rows(read: Reader, published: str | None = None) -> RowReader:
    """Return a reader of rows from one of archived texts."""

    def read_rows(file: Path, options: ArchiveOptions) -> Iterator[VersionedRow]:
        for text, language, scores, attributes, model, in_file in read(file, options):
            scored = in_file or options.scored
            if scored is None and model is None:
                raise InputError(_no_date(file, published))
            scorer = _scorer(model, scored)
            yield scorer.version, archived_row(text, language, scorer, attributes, scores, known_date(scored))

    return read_rows


_scorer = lru_cache(maxsize=256)(archived_id)


def _no_date(file: Path, published: str | None) -> str:
    hint = f" (the file was published in {published})" if published else ""
    return (
        f"{file}: does not say when it was scored, and Google's model changed over the years. Say the year{hint}: "
        f"--scored {published or 'YEAR'}, or --scored unknown"
    )


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    """Return whether a first row has all these fields."""
    return lambda row: set(names) <= row.keys()


def _has_any(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: not row.keys().isdisjoint(names)


FORMS = {
    form.name: form
    for form in (
        Form(
            "export",
            "an export of a score store",
            _has("key", "scorer"),
            lambda file, _: _rows(read_parquet(file)),
            is_dated=True,
        ),
        Form(
            "polyglo",
            "PolygloToxicityPrompts: text, prompt and continuation of each row",
            _has_any("perspective", "prompt_perspective", "continuation_perspective"),
            _archived_rows(read_polyglo, published="2024"),
        ),
        Form(
            "rtp",
            "RealToxicityPrompts: prompt and continuation of each row",
            lambda row: isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict),
            _archived_rows(read_real_toxicity_prompts, published="2020"),
        ),
        Form(
            "paper",
            "the paper's scripts",
            _has("query", "response"),
            lambda file, options: _rows(read_perspective(file, options)),
        ),
        Form(
            "answers",
            "answers of the Perspective API",
            _has_any("response", "attributeScores"),
            _archived_rows(read_answers),
        ),
        Form(
            "jigsaw",
            "Jigsaw's labels of annotators",
            lambda row: "comment_text" in row and not row.keys().isdisjoint(("toxic", "target", "obscene")),
            lambda file, _: _rows(read_jigsaw(file)),
            is_dated=True,
        ),
        Form("table", "a table of texts and scores", lambda row: True, _archived_rows(read_table)),
    )
}
"""The forms by name, in the order in which they are recognised."""


def find_files(path: str, options: ArchiveOptions) -> list[tuple[Path, Form]]:
    """Return a file, or the files of scores in a folder, each with its form.

    Raises:
        InputError: there is no such file, or no file of a known form.
    """
    check_scored(options.scored)
    source = resolve_input(path, "scores")
    files = [file for pattern in IN_FOLDERS for file in sorted(source.glob(pattern))] if source.is_dir() else [source]
    files = [file for file in files if plain_name(file).suffix in SUFFIXES]
    if not files:
        raise InputError(
            f"{source}: no file of scores in a known form. Known are {', '.join(SUFFIXES)} files: "
            + "; ".join(form.description for form in FORMS.values())
        )
    return [(file, form_of(file, options)) for file in files]


def form_of(file: Path, options: ArchiveOptions) -> Form:
    """Return the form that the user names, or else the one that the first row shows.

    Raises:
        InputError: the named form is none, or the file cannot be read.
    """
    if options.form is None:
        row = first_row(file)
        return next(form for form in FORMS.values() if form.has_form(row))
    if options.form not in FORMS:
        raise InputError(f"--form: unknown: {options.form}; known: {', '.join(FORMS)}")
    return FORMS[options.form]


def read_file(file: Path, form: Form, options: ArchiveOptions) -> Iterator[VersionedRow]:
    """Yield the rows of a file, each with its scorer's version, and say at its end what was left out.

    Raises:
        InputError: the file or a row is wrong.
    """
    if form.is_dated and options.scored:
        raise InputError(f"{file}: {form.description} says itself whose scores it holds; leave out --scored")
    before = options.left_out.copy()
    yield from form.read(file, options)
    for reason, number in (options.left_out - before).items():
        log.warning("%s: %d texts are left out: %s", file, number, reason)


def read_scores(path: str, options: ArchiveOptions | None = None) -> Iterator[ScoreEntry]:
    """Return the entries of a file of scores, or of all such files in a folder.

    Raises:
        InputError: there is no file of a known form, or a row of one is wrong.
    """
    options = options or ArchiveOptions()
    files = find_files(path, options)
    rows = chain.from_iterable(read_file(file, form, options) for file, form in files)
    return (ScoreEntry.from_row(row) for _, row in rows)
