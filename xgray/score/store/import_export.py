"""Read the files of scores that have a form of their own, and export a store to a file.

These are the paper's ``perspective_api_eval-*.json`` files, Jigsaw's CSV files, whose human labels become the scores of
a scorer named ``jigsaw-annotators``, and exported Parquet files; :mod:`xgray.score.store.forms` has all forms. Export
writes Parquet, one row per entry. An export without texts may be shared where a licence forbids to share the texts:
whoever has a text finds its score by the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.data.archives.archived import ArchiveOptions
from xgray.data.generations import file_language
from xgray.data.perspective_results import SCORER, SCORER_VERSION, parse_scores
from xgray.data.source import read_csv, read_records
from xgray.errors import InputError
from xgray.rows import PAPER_ATTRIBUTES, AttributeScores
from xgray.score.perspective_versions import archived_id, known_date
from xgray.score.scorer import Scored, ScorerId
from xgray.score.store.entry import KEY_BYTES, ScoreEntry, score_keys
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

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
"""The label columns of Jigsaw's two data sets, and the attribute that each is. The data sets are two versions of the
scorer, since their labels differ in kind: 0 or 1, what most annotators said; or the share of annotators who said so."""
ROWS_PER_BATCH = 65536
MORE_SCORES = "more_scores"


def read_perspective(file: Path, options: ArchiveOptions) -> Iterator[ScoreEntry]:
    """Yield the entries of one of the paper's files.

    Lines without a score are left out: the failure may have been temporary. The scripts sent one space in place of an
    empty completion, so its score is stored as that of a space.
    """
    code = file_language(file, next(iter(options.languages), None))
    # Without a date these are taken for scores of the service as it is now, as they always were.
    scorer = archived_id(None, options.scored) if options.scored else ScorerId(SCORER, SCORER_VERSION)
    date = known_date(options.scored)
    for record in read_records(file):
        scores, error = parse_scores(record, "released")
        if error:
            options.left_out[error[:80]] += 1
            continue
        attributes = [name for name, value in scores.items() if value is not None]
        yield ScoreEntry.of_text(record.text("query") or " ", code, scorer, attributes, Scored(scores), date)


def read_jigsaw(file: Path) -> Iterator[ScoreEntry]:
    """Yield the human labels of one of Jigsaw's CSV files, which are in English."""
    version: str | None = None
    labels: dict[str, str] = {}
    for line, row in read_csv(file, [["comment_text"]]):
        if version is None:
            version = "toxic-comments" if "toxic" in row else "unintended-bias"
            labels = {name: JIGSAW_LABELS[version][name] for name in row if name in JIGSAW_LABELS[version]}
            if sorted(labels.values()) != sorted(PAPER_ATTRIBUTES):
                known = "; or ".join(", ".join(columns) for columns in JIGSAW_LABELS.values())
                raise InputError(f"{file}:1: Jigsaw's files have the columns {known}; found: {', '.join(row)}")
        scores: AttributeScores = {labels[name]: _probability(f"{file}:{line}", name, row[name]) for name in labels}
        scorer = ScorerId(JIGSAW_SCORER, version)
        yield ScoreEntry.of_text(row["comment_text"], "en", scorer, list(scores), Scored(scores))


def read_parquet(file: Path) -> Iterator[ScoreEntry]:
    """Yield the entries of a file that :func:`write_parquet` wrote, with or without texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_number = 0
    try:
        with pq.ParquetFile(file) as parquet:
            found = parquet.schema_arrow.names
            wanted = parquet_schema("text" in found, with_more=MORE_SCORES in found)
            if missing := [name for name in wanted.names if name not in found]:
                raise InputError(f"{file}: no column {', '.join(missing)}; scores have {', '.join(wanted.names)}")
            for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=wanted.names):
                for fields in pa.table(batch).select(wanted.names).cast(wanted).to_pylist():
                    row_number += 1
                    yield _entry(f"{file}: row {row_number}", fields)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{file}: no readable Parquet file of scores: {str(error).splitlines()[0]}") from None


def _entry(where: str, fields: dict[str, Any]) -> ScoreEntry:
    """Return the entry of a row, whose place in the file is ``where``."""
    measured = {name: fields.pop(name) for name in PAPER_ATTRIBUTES}
    scores = {name: _probability(where, name, value) for name, value in measured.items() if value is not None}
    scores |= {name: _probability(where, name, value) for name, value in fields.pop(MORE_SCORES, None) or ()}
    try:
        key = bytes.fromhex(fields.pop("key"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise InputError(f"{where}: the key is not {2 * KEY_BYTES} hexadecimal digits")
    entry = ScoreEntry(key, scores=scores, **{**fields, "attributes": tuple(fields["attributes"])})
    scorer = ScorerId(entry.scorer, entry.version)
    if entry.text is not None and score_keys([entry.text], entry.language, scorer) != [key]:
        raise InputError(f"{where}: the key is not that of the text, so one of the two was changed")
    return entry


def _probability(where: str, name: str, value: Any) -> float:
    """Return the number in ``value``, the field ``name`` of a row."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(f"{where}: {name} is {value!r}, not a number from 0 to 1")
    return number


def write_parquet(entries: Iterable[ScoreEntry], file: str, with_text: bool) -> int:
    """Write entries as one Parquet file, whole or not at all, and return their number.

    Args:
        file: a local path or a URI.
        with_text: whether to write the texts, or their keys alone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = parquet_schema(with_text)
    num_rows = 0
    sink = pa.BufferOutputStream()
    remaining = iter(entries)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while batch := list(islice(remaining, ROWS_PER_BATCH)):
            rows = [
                vars(entry)
                | entry.scores
                | {"key": entry.key.hex(), "text": _utf8_text(entry), "error": _utf8(entry.error)}
                | _more_scores(entry)
                for entry in batch
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            num_rows += len(rows)
    folder, name = Folder.containing(file)
    folder.write_bytes(name, sink.getvalue().to_pybytes())
    return num_rows


def _utf8_text(entry: ScoreEntry) -> str | None:
    """Return the text, or None if it holds half a surrogate pair, which no file can carry: its key stands for it."""
    try:
        (entry.text or "").encode()
    except UnicodeEncodeError:
        return None
    return entry.text


def _utf8(message: str | None) -> str | None:
    """Return a message as a file can carry it: a service's may hold halves of surrogate pairs."""
    return None if message is None else message.encode("utf-8", "backslashreplace").decode()


def _more_scores(entry: ScoreEntry) -> dict[str, list[tuple[str, float]] | None]:
    more = [(name, value) for name, value in sorted(entry.scores.items()) if name not in PAPER_ATTRIBUTES]
    return {MORE_SCORES: more or None}


def parquet_schema(with_text: bool, with_more: bool = True) -> pa.Schema:
    """Return the columns of an export.

    ``key`` is hexadecimal. ``attributes`` lists the attributes that were requested; each attribute of
    :data:`xgray.rows.PAPER_ATTRIBUTES` has a column of scores. Others, such as sexually_explicit, are in
    ``more_scores``, which exports of earlier versions lack.
    """
    import pyarrow as pa

    string = pa.string()
    fields = [pa.field(name, string, nullable=False) for name in ("key", "language", "scorer", "version")]
    fields.append(pa.field("attributes", pa.list_(string), nullable=False))
    fields += [pa.field(name, pa.float64()) for name in PAPER_ATTRIBUTES]
    fields += [pa.field("error", string), pa.field("seconds", pa.float64()), pa.field("date", string)]
    if with_more:
        fields.append(pa.field(MORE_SCORES, pa.map_(string, pa.float64())))
    return pa.schema([*fields, pa.field("text", string)] if with_text else fields)
