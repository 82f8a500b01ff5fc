"""Scores that exist already, in and out of a score store.

In: the paper's ``perspective_api_eval-*.json`` files; Jigsaw's CSVs, whose human labels become the scores of a scorer
named ``jigsaw-annotators``; and the Parquet files that are written here. Out: Parquet, one row for each entry. Without
the texts it is the form that may be passed on where the texts may not: who has a text finds its score by the key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.data.generations import files_of, language_of
from xgray.data.perspective_results import PREFIX, SCORER, SCORER_VERSION, archived_scores
from xgray.data.source import csv_rows, records, resolve_input
from xgray.errors import InputError
from xgray.rows import ATTRIBUTES
from xgray.score.store.entry import KEY_BYTES, ScoreEntry, score_keys
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


log = logging.getLogger(__name__)

JIGSAW_SCORER = "jigsaw-annotators"
JIGSAW_LABELS = {
    "toxic-comments": {
        "toxic": "toxicity",
        "severe_toxic": "severe_toxicity",
        "obscene": "profanity",
        "threat": "threat",
        "insult": "insult",
        "identity_hate": "identity_attack",
    },
    "unintended-bias": {
        "target": "toxicity",
        "toxicity": "toxicity",
        "severe_toxicity": "severe_toxicity",
        "obscene": "profanity",
        "identity_attack": "identity_attack",
        "insult": "insult",
        "threat": "threat",
    },
}
"""The columns of Jigsaw's two data sets. Their labels differ in kind, so they are two versions of the scorer: what most
annotators said, 0 or 1, and the share of them that said so."""
ROWS_AT_ONCE = 65536


def read_scores(path: str, language: str | None = None) -> Iterator[ScoreEntry]:
    """The entries of one file, or of all such files of a folder: ``*.parquet``, ``*.csv``, and the paper's.

    Args:
        language: of a Perspective file whose name does not end in it.

    Raises:
        InputError: a file is none of these, or a line of it is wrong.
    """
    source = resolve_input(path, "scores")
    kinds: dict[str, Callable[[Path], Iterator[ScoreEntry]]] = {
        "*.parquet": read_parquet,
        "*.csv": read_jigsaw,
        f"{PREFIX}*.json": lambda file: read_perspective(file, language),
    }
    found = [
        (file, read)
        for pattern, read in kinds.items()
        if source.is_dir() or source.match(pattern)
        for file in files_of(source, pattern)
    ]
    if not found:
        raise InputError(f"{source}: no scores are known in this form; known: {', '.join(kinds)}")
    for file, read in found:
        yield from read(file)


def read_perspective(file: Path, language: str | None) -> Iterator[ScoreEntry]:
    """The answers of one of the paper's files; what has no score is left out, as its failure may have passed."""
    code = language_of(file, language)
    num_missing = 0
    for record in records(file):
        scores, error = archived_scores(record, "released")
        if error:
            num_missing += 1
            continue
        text = record.text("query") or " "  # The scripts sent one space for nothing.
        attributes = [name for name, value in scores.items() if value is not None]
        yield ScoreEntry.of_text(text, code, SCORER, SCORER_VERSION, attributes, scores)
    if num_missing:
        log.warning("%s: %d lines hold no score and are left out", file, num_missing)


def read_jigsaw(file: Path) -> Iterator[ScoreEntry]:
    """The human labels of one of Jigsaw's CSVs, which are in English."""
    version: str | None = None
    labels: dict[str, str] = {}
    for line, row in csv_rows(file, [["comment_text"]]):
        if version is None:
            version = "toxic-comments" if "toxic" in row else "unintended-bias"
            labels = {name: JIGSAW_LABELS[version][name] for name in row if name in JIGSAW_LABELS[version]}
            if sorted(labels.values()) != sorted(ATTRIBUTES):
                known = "; or ".join(", ".join(columns) for columns in JIGSAW_LABELS.values())
                raise InputError(f"{file}:1: Jigsaw's files have the columns {known}; found: {', '.join(row)}")
        scores = {labels[name]: _probability(f"{file}:{line}", name, row[name]) for name in labels}
        yield ScoreEntry.of_text(row["comment_text"], "en", JIGSAW_SCORER, version, list(scores), scores)


def read_parquet(file: Path) -> Iterator[ScoreEntry]:
    """The entries of a file that :func:`write_parquet` wrote, with or without texts; each says its language."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            with_text = "text" in parquet.schema_arrow.names
            wanted = parquet_schema(with_text)
            if missing := [name for name in wanted.names if name not in parquet.schema_arrow.names]:
                raise InputError(f"{file}: no column {', '.join(missing)}; scores have {', '.join(wanted.names)}")
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=wanted.names):
                for fields in pa.table(batch).select(wanted.names).cast(wanted).to_pylist():
                    row_number += 1
                    yield _entry(f"{file}: row {row_number}", fields)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{file}: no readable Parquet file of scores: {str(error).splitlines()[0]}") from None


def _entry(where: str, fields: dict[str, Any]) -> ScoreEntry:
    measured = {name: fields.pop(name) for name in ATTRIBUTES}
    scores = {name: _probability(where, name, value) for name, value in measured.items() if value is not None}
    try:
        key = bytes.fromhex(fields.pop("key"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(f"{where}: the key is not {2 * KEY_BYTES} hexadecimal digits")
    entry = ScoreEntry(key, scores=scores, **{**fields, "attributes": tuple(fields["attributes"])})
    if entry.text is not None and score_keys([entry.text], entry.language, entry.scorer, entry.version) != [key]:
        raise InputError(f"{where}: the key is not that of the text; one of them was changed")
    return entry


def _probability(where: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(f"{where}: {name} is {value!r}, not a number from 0 to 1")
    return number


def write_parquet(entries: Iterable[ScoreEntry], file: str, with_text: bool) -> int:
    """Write entries as one Parquet file and return their number; without texts it is the licence-safe form.

    Args:
        file: a local path or a URI.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema(with_text)
    num_rows = 0
    sink = pa.BufferOutputStream()
    left = iter(entries)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while chunk := list(islice(left, ROWS_AT_ONCE)):
            rows = [vars(one) | one.scores | {"key": one.key.hex(), "text": _text(one)} for one in chunk]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            num_rows += len(rows)
    folder, name = Folder.containing(file)
    folder.write_bytes(name, sink.getvalue().to_pybytes())
    return num_rows


def _text(entry: ScoreEntry) -> str | None:
    """The text where a file can carry it: with half a surrogate pair it goes by its key alone."""
    try:
        (entry.text or "").encode()
    except UnicodeEncodeError:
        return None
    return entry.text


def parquet_schema(with_text: bool) -> pa.Schema:
    """``key`` is hexadecimal; ``attributes`` are those asked for, each of which has a column for its score."""
    import pyarrow as pa

    text = pa.string()
    fields = [pa.field(name, text, nullable=False) for name in ("key", "language", "scorer", "version")]
    fields.append(pa.field("attributes", pa.list_(text), nullable=False))
    fields += [pa.field(name, pa.float64()) for name in ATTRIBUTES]
    fields += [pa.field("error", text), pa.field("seconds", pa.float64()), pa.field("date", text)]
    return pa.schema([*fields, pa.field("text", text)] if with_text else fields)
