"""The rows of JSON-lines, Parquet and CSV files one after the other, so that a file of any size takes little memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from xgray.data.source import open_input, plain_name, read_csv, read_lines, read_records
from xgray.errors import InputError
from xgray.storage.parse import check_regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Row = TypeVar("Row")

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
ROWS_PER_BATCH = 2048
UNREAD = frozenset({"spanScores", "type", "detectedLanguages"})
"""Parts of Perspective's answers that are not read; they are most of an answer."""


def first_row(file: Path) -> dict[str, Any]:
    """Return the first row of a file, by which its form is recognised; of an empty table the names with None.

    Raises:
        InputError: the file cannot be read, or is empty.
    """
    if file.suffix == ".parquet":
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(1):
                return _rows_of(batch, file)[0]
            return dict.fromkeys(parquet.schema_arrow.names)
    if plain_name(file).suffix == ".csv":
        for _, row in read_csv(file, []):
            return dict(row)
        raise InputError(f"{file}: no rows below the header")
    return next(read_records(file)).fields


def read_rows(file: Path, row_type: type[Row]) -> Iterator[tuple[str, Row]]:
    """Yield the rows, each with its place for messages: ``file:line``, or ``file: row 7`` of a Parquet file.

    Args:
        row_type: what a row must be, such as a ``msgspec.Struct`` of the needed fields; others are passed over.

    Raises:
        InputError: the file cannot be read, or a row is another thing than ``row_type`` says.
    """
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, row_type)
    elif plain_name(file).suffix == ".csv":
        for number, row in read_csv(file, []):
            yield f"{file}:{number}", _convert(row, row_type, f"{file}:{number}")
    else:
        yield from _json_rows(file, row_type)


def _json_rows(file: Path, row_type: type[Row]) -> Iterator[tuple[str, Row]]:
    decode, prefix = msgspec.json.Decoder(row_type).decode, f"{file}:"
    with open_input(file) as stream:
        for number, line in enumerate(read_lines(stream, file), start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.isspace():
                continue
            try:
                row = decode(content)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise InputError(f"{prefix}{number}: {_explain(content, error)}") from None
            yield f"{prefix}{number}", row


def _parquet_rows(file: Path, row_type: type[Row]) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    number = 0
    with open_parquet(file) as parquet:
        paths = [parquet.schema.column(index).path for index in range(len(parquet.schema))]
        wanted = getattr(row_type, "__struct_fields__", parquet.schema_arrow.names)
        columns = [path for path in paths if _is_read(path.split("."), wanted)]
        try:
            for batch in parquet.iter_batches(ROWS_PER_BATCH, columns=columns):
                for fields in _rows_of(batch, file):
                    number += 1
                    where = f"{file}: row {number}"
                    yield where, _convert(fields, row_type, where)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{file}: no readable Parquet file: {str(error).splitlines()[0]}") from None


def _rows_of(batch: pa.RecordBatch, file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: a text is not UTF-8 ({error.reason}); write the file again") from None
    return rows


def _convert(fields: dict[str, Any], row_type: type[Row], where: str) -> Row:
    """Return a row of columns as ``row_type``."""
    try:
        return msgspec.convert(fields, row_type)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_plain(error)}; columns found: {', '.join(fields)}") from None


def _is_read(path: list[str], wanted: Sequence[str]) -> bool:
    """Whether a column of values, by its path in nested fields, belongs to a wanted field and is not passed over."""
    return path[0] in wanted and UNREAD.isdisjoint(path[1:])


def open_parquet(file: Path) -> pq.ParquetFile:
    """Return an open Parquet file.

    Raises:
        InputError: it is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(file)
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: no readable Parquet file: {str(error).splitlines()[0]}") from None


def _explain(line: bytes, error: Exception) -> str:
    """Return in one line why a JSON line was refused, with the fields that it has."""
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        return "not UTF-8; save the file as UTF-8"
    except RecursionError:
        return "broken JSON (nested too deeply)"
    except ValueError as broken:
        reason = str(broken).partition(":")[0]
        return f"broken JSON ({reason}), as when a file is cut off; one JSON object a line is expected"
    if not isinstance(error, msgspec.ValidationError):
        if b"NaN" in line or b"Infinity" in line:
            return "NaN or Infinity, which is no JSON; write a number or null, or take the line out"
        return (
            "half a surrogate pair, which no file can store; correct the text"
            if _has_half_pair(fields)
            else (f"broken JSON ({error})")
        )
    found = f"; fields of this line: {', '.join(fields)}" if isinstance(fields, dict) else ""
    return f"{_plain(error)}{found}"


def _has_half_pair(fields: Any) -> bool:
    """Whether a text holds half a surrogate pair."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _plain(error: msgspec.ValidationError) -> str:
    """Return msgspec's message in the project's words."""
    message = str(error).replace("Object missing required field", "no field").replace("`", "'")
    return re.sub(r" - at '\$\.?(.*)'$", r" in '\1'", message)
