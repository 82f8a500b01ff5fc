"""Read preference pairs: a file or a folder of JSON lines or Parquet, in any of the forms of :mod:`.pair_forms`.

A pair's language is what its row says (``language``, ``Locale``), or else what its file's name says: ``de.jsonl``,
``pairs_de.jsonl``, ``RTP_LX_DE.json``, ``lang=de/``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from xgray.data.archives.rows import read_rows
from xgray.data.pair_files import file_language, list_pair_files
from xgray.data.pair_forms import AnyPair, PairRow, ReadPair, is_empty, row_form
from xgray.data.source import resolve_input
from xgray.errors import InputError
from xgray.rows import Pairs
from xgray.storage.fingerprint import fingerprint

log = logging.getLogger(__name__)


REASONS = {
    "num_equal_left_out": "are left out: chosen and rejected are equal",
    "num_repeated_left_out": "are left out: an earlier row is the same",
    "num_incomplete_left_out": "are left out: the prompt or a completion is empty",
    "num_cut": "have a completion that was cut to the length of the other",
}


NO_LANGUAGE = (
    "no row and no file's name says a language. Give the rows a field 'language', or name the files after it: de.jsonl"
)


@dataclass(frozen=True)
class LoadedPairs:
    """The pairs of a file or folder, and what became of the others."""

    pairs: Pairs
    counts: dict[str, int]
    """The numbers of pairs that were left out or cut, under the names in :data:`REASONS`; none is zero."""
    other_splits: list[str]
    """The splits of the folder that were not read."""


@dataclass
class _Reading:
    """What is kept while files are read."""

    languages: Sequence[str] | None
    """Those to read; by default all."""
    present: Counter[str | None] = field(default_factory=Counter)
    """Rows by language, those of other languages too."""
    counts: Counter[str] = field(default_factory=Counter)
    """As in :class:`LoadedPairs`, of the rows left out by the readers."""
    empty: list[str] = field(default_factory=list)
    """Each place with an empty text, as the beginning of a message."""
    seen: set[AnyPair] = field(default_factory=set)
    """The pairs of a form whose rows may repeat."""


def read_pairs(path: str, limit: int | None = None, languages: Sequence[str] | None = None) -> Pairs:
    """Return the pairs of :func:`load_pairs`."""
    return load_pairs(path, limit, languages).pairs


def load_pairs(path: str, limit: int | None = None, languages: Sequence[str] | None = None) -> LoadedPairs:
    """Return the pairs of a file or of a folder's files, in their order, and log what was left out or cut.

    Texts stay as they are: the leading space of a completion belongs to it. A pair of equal completions prefers
    neither: it is left out. Warnings count such pairs, and the completions that one pair chooses and another of the
    same prompt rejects; these stay. Of RTP-LX, rows without a completion and repeated rows are left out too.

    Args:
        path: the file or folder, or ``embedded``.
        limit: at most this many pairs: the first ones, or, of several ``languages``, the first of each in turn.
        languages: codes of the languages to take; by default all pairs, those of an unknown language too.

    Raises:
        InputError: there is no such file, a row is broken, lacks a field or has an empty prompt or completion, a
            language has no pairs, or no pair is left.
    """
    loaded = _load(path, limit, languages)
    if loaded.other_splits:
        log.info("%s: only the split of training is read, not %s", path, ", ".join(loaded.other_splits))
    for name, number in loaded.counts.items():
        log.warning("%s: %d pairs %s", path, number, REASONS[name])
    pairs = loaded.pairs
    chosen = {(pair.prompt, pair.chosen) for pair in pairs}
    if both := chosen & {(pair.prompt, pair.rejected) for pair in pairs}:
        log.warning(
            "%s: %d completions are chosen in one pair and rejected in another of the same prompt", path, len(both)
        )
    return loaded


def pairs_fingerprint(path: str, limit: int | None = None, languages: Sequence[str] | None = None) -> str:
    """Return the SHA-256 of the pairs that :func:`load_pairs` returns, whatever files they come from.

    It is computed once for all trainings on the same pairs, as long as the files have the same sizes and times.
    """
    stats = [(file, file.stat()) for file in list_pair_files(resolve_input(path, "pairs")).files]
    files = tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    return _fingerprint(path, limit, None if languages is None else tuple(languages), files)


@lru_cache(maxsize=64)
def _fingerprint(
    path: str, limit: int | None, languages: tuple[str, ...] | None, files: tuple[tuple[Path, int, int], ...]
) -> str:
    """Return the fingerprint of the pairs; ``files`` says when it has to be computed again."""
    pairs = _load(path, limit, languages).pairs
    return fingerprint({"pairs": [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs]})


def holds_messages(path: str) -> bool:
    """Whether the pairs of a file or folder are messages, by the first row of the first file.

    Raises:
        InputError: there is no such file, or its rows are no pairs.
    """
    return row_form(list_pair_files(resolve_input(path, "pairs")).files[0]).is_chat


def language_counts(pairs: Pairs) -> dict[str, int]:
    """Return the number of pairs of each language, without those whose language is unknown."""
    return dict(Counter(pair.language for pair in pairs if pair.language is not None))


def _load(path: str, limit: int | None, languages: Sequence[str] | None) -> LoadedPairs:
    source = resolve_input(path, "pairs")
    found = list_pair_files(source)
    files = found.files
    forms = [row_form(file) for file in files]
    chats = [file.name for file, form in zip(files, forms, strict=True) if form.is_chat]
    if 0 < len(chats) < len(files):
        raise InputError(
            f"{source}: pairs of messages ({chats[0]}) beside pairs of texts; keep files of one kind in this folder"
        )
    reading = _Reading(languages)
    default = "en" if path == "embedded" else None
    rows = chain.from_iterable(
        _rows(file, form, file_language(file) or default, reading) for file, form in zip(files, forms, strict=True)
    )
    read = list(islice(rows, limit)) if languages is None else _in_turn(list(rows), languages, limit)
    _check_reading(source, reading)
    kept = [row for row in read if row.pair.chosen != row.pair.rejected]
    counts = {
        "num_equal_left_out": len(read) - len(kept),
        **reading.counts,
        "num_cut": sum(row.is_cut for row in kept),
    }
    if not kept:
        reasons = [f"{number} {REASONS[name]}" for name, number in counts.items() if number]
        raise InputError(f"{source}: no preference pair is left; {'; '.join(reasons) or 'there are no rows'}")
    pairs: Any = [row.pair for row in kept]  # of one kind, as the forms are
    return LoadedPairs(pairs, {name: number for name, number in counts.items() if number}, found.other_splits)


def _rows(file: Path, form: type[PairRow], of_file: str | None, reading: _Reading) -> Iterator[ReadPair]:
    """Yield the pairs of a file in the languages to read, and note in ``reading`` what is left out."""
    for where, row in read_rows(file, form):
        code = row.language_code(where, of_file)
        reading.present[code] += 1
        if reading.languages is not None and code not in reading.languages:
            continue
        read = row.read(where, code)
        contents = (read.pair.prompt, read.pair.chosen, read.pair.rejected)
        empty = [name for name, content in zip(form.names, contents, strict=True) if is_empty(content)]
        if empty and not form.may_be_incomplete:
            reading.empty.append(f"{where}: {' and '.join(empty)} is empty")
        elif empty:
            reading.counts["num_incomplete_left_out"] += 1
        elif form.may_be_incomplete and read.pair in reading.seen:
            reading.counts["num_repeated_left_out"] += 1
        else:
            if form.may_be_incomplete:
                reading.seen.add(read.pair)
            yield read


def _in_turn(rows: list[ReadPair], languages: Sequence[str], limit: int | None) -> list[ReadPair]:
    """Return ``limit`` rows, taken from the languages in turn until one has no more, in the order of ``rows``."""
    if limit is None:
        return rows
    num_before: Counter[str] = Counter()
    turns = []
    for position, row in enumerate(rows):
        code = row.pair.language or ""
        turns.append((num_before[code], languages.index(code), position))
        num_before[code] += 1
    return [rows[position] for position in sorted(position for _, _, position in sorted(turns)[:limit])]


def _check_reading(source: Path, reading: _Reading) -> None:
    """Check that no text is empty, and that all languages to read have rows.

    Raises:
        InputError: one is, or one has none.
    """
    if reading.empty:
        first, *others = reading.empty
        more = f" (and {len(others)} more such rows: {others[0]})" if others else ""
        raise InputError(f"{first}{more}; complete such rows, or take them out")
    missing = [code for code in reading.languages or () if not reading.present[code]]
    if missing:
        present = ", ".join(f"{code} {number:,}" for code, number in reading.present.items() if code is not None)
        raise InputError(
            f"{source}: no pairs in {', '.join(missing)}; "
            + (f"pairs by language: {present}. Set train.languages to some of these" if present else NO_LANGUAGE)
        )
