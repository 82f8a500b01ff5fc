"""The forms of files of scores: which one a file has, and the entries that it holds.

PolygloToxicityPrompts, RealToxicityPrompts, answers, tables ──▶ xgray.data.archives ─┐
the paper's files, Jigsaw's labels, exports ──▶ xgray.score.store.import_export ──────┴─▶ ScoreEntry ─▶ ScoreStore.put
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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
from xgray.data.source import resolve_input
from xgray.errors import InputError
from xgray.score.perspective_versions import archived_id, known_date
from xgray.score.store.entry import ScoreEntry, score_keys
from xgray.score.store.import_export import read_jigsaw, read_parquet, read_perspective

log = logging.getLogger(__name__)

IN_FOLDERS = ("*.parquet", "*.csv", "*.jsonl", f"{FILE_PREFIX}*.json")
"""The files that are read of a folder. Others, such as its ``dataset_infos.json``, hold no scores."""


@dataclass(frozen=True)
class Form:
    """A form of files of scores."""

    name: str
    description: str
    has_form: Callable[[dict[str, Any]], bool]
    """Whether a file with this first row has the form."""
    read: Callable[[Path, ArchiveOptions], Iterator[ScoreEntry]]
    is_dated: bool = False
    """Whether the file itself says of what scorer its scores are."""


Reader = Callable[[Path, ArchiveOptions], Iterator[ArchivedText]]


def _entries(read: Reader, released: str | None = None) -> Callable[[Path, ArchiveOptions], Iterator[ScoreEntry]]:
    """Return a reader of entries from one of archived texts."""

    def read_entries(file: Path, options: ArchiveOptions) -> Iterator[ScoreEntry]:
        for archived in read(file, options):
            scored = archived.scored or options.scored
            if scored is None and archived.model is None:
                raise InputError(_no_date(file, released))
            scorer = _scorer(archived.model, scored)
            (key,) = score_keys([archived.text], archived.language, scorer)
            yield ScoreEntry(
                key,
                archived.language,
                scorer.name,
                scorer.version,
                archived.attributes,
                archived.scores,
                date=known_date(scored),
                text=archived.text,
            )

    return read_entries


_scorer = lru_cache(maxsize=256)(archived_id)


def _no_date(file: Path, released: str | None) -> str:
    hint = f" (the file was published in {released})" if released else ""
    return (
        f"{file}: does not say when it was scored, and Google's model changed over the years. Say the year{hint}: "
        f"--scored {released or 'YEAR'}, or --scored unknown"
    )


def _archive(name: str, description: str, has_form: Callable[[dict[str, Any]], bool], read: Reader, year: str) -> Form:
    return Form(name, description, has_form, _entries(read, year or None))


FORMS = {
    form.name: form
    for form in (
        Form(
            "export",
            "an export of a score store",
            lambda row: {"key", "scorer"} <= row.keys(),
            lambda file, options: read_parquet(file),
            is_dated=True,
        ),
        _archive(
            "polyglo",
            "PolygloToxicityPrompts: text, prompt and continuation of each row",
            lambda row: bool({"perspective", "prompt_perspective", "continuation_perspective"} & row.keys()),
            read_polyglo,
            "2024",
        ),
        _archive(
            "rtp",
            "RealToxicityPrompts: prompt and continuation of each row",
            lambda row: isinstance(row.get("prompt"), dict) and isinstance(row.get("continuation"), dict),
            read_real_toxicity_prompts,
            "2020",
        ),
        Form("paper", "the paper's scripts", lambda row: {"query", "response"} <= row.keys(), read_perspective),
        _archive(
            "answers",
            "answers of the Perspective API",
            lambda row: bool({"response", "attributeScores"} & row.keys()),
            read_answers,
            "",
        ),
        Form(
            "jigsaw",
            "Jigsaw's labels of annotators",
            lambda row: "comment_text" in row and bool({"toxic", "target", "obscene"} & row.keys()),
            lambda file, options: read_jigsaw(file),
            is_dated=True,
        ),
        _archive("table", "a table of texts and scores", lambda row: True, read_table, ""),
    )
}


def find_files(path: str, options: ArchiveOptions) -> list[tuple[Path, Form]]:
    """Return a file, or the files of scores in a folder, each with its form.

    Raises:
        InputError: there is no such file, or no file of a known form.
    """
    check_scored(options.scored)
    source = resolve_input(path, "scores")
    files = [file for pattern in IN_FOLDERS for file in sorted(source.glob(pattern))] if source.is_dir() else [source]
    files = [file for file in files if file.suffix in SUFFIXES]
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


def read_file(file: Path, form: Form, options: ArchiveOptions) -> Iterator[ScoreEntry]:
    """Yield the entries of a file, and say at its end what was left out.

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
    return chain.from_iterable(read_file(file, form, options) for file, form in find_files(path, options))
