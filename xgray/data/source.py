"""Locate input files, and read CSV and JSON-lines files, with the place of each row for messages.

JSON lines are split on ``\\n`` only: texts may hold U+2028.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, cast

from xgray.errors import InputError
from xgray.languages import language
from xgray.storage.parse import check_regular

LANGUAGE_FIELDS = ("language", "lang", "Language", "Locale", "locale")
"""The names under which files say the language of a row."""
MAX_LINE_BYTES = 64 << 20


def resolve_input(path: str, kind: str) -> Path:
    """Return the file or folder that ``path`` names.

    Args:
        path: A local path, or ``embedded`` for the data that the package ships.
        kind: What is read, such as ``prompts``: the name of the embedded file or folder, and for the message.

    Raises:
        InputError: there is no such file or folder.
    """
    if path == "embedded":
        return Path(str(resources.files("xgray").joinpath("embedded", kind)))
    resolved = Path(path).expanduser()
    if not resolved.exists():
        raise InputError(f"{resolved}: no such file or folder ({kind})")
    check_regular(resolved)
    return resolved


@dataclass(frozen=True)
class Record:
    """One line of a JSON-lines file."""

    location: str
    """``file:line``, for messages."""
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """Return the text in field ``name``, unchanged.

        Raises:
            InputError: the field is missing, or does not hold text that a file can store.
        """
        if name not in self.fields:
            raise InputError(f"{self.location}: no field {name!r}; fields of this line: {', '.join(self.fields)}")
        value = self.fields[name]
        if not isinstance(value, str):
            raise InputError(f"{self.location}: {name} must be text, not {json.dumps(value, ensure_ascii=False)[:40]}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{self.location}: {name} holds half a surrogate pair, which no file can store; correct the text"
            ) from None
        return value

    def nonempty_text(self, name: str) -> str:
        """Return the text in field ``name``, as :meth:`text`; white space alone is refused too."""
        value = self.text(name)
        if not value.strip():
            raise InputError(f"{self.location}: {name} is empty")
        return value


def plain_name(path: Path) -> Path:
    """Return a file's name without ``.gz``, so that its suffix says what it holds."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def folder_language(path: Path) -> str | None:
    """Return the language that the folder ``lang=en`` of a partitioned data set names, None if its name is no such."""
    name, equals, value = path.parent.name.partition("=")
    return value if equals and name in LANGUAGE_FIELDS else None


def check_language(fields: Mapping[str, Any], location: str, code: str) -> None:
    """Check that a row does not say another language than the one that it is taken to be of.

    Raises:
        InputError: it does, or names a language that is none of the 17.
    """
    for name in LANGUAGE_FIELDS:
        stated = fields.get(name)
        if isinstance(stated, str) and stated.strip():
            try:
                found = language(stated).code
            except InputError as error:
                raise InputError(f"{location}: {name}: {error}") from None
            if found != code:
                raise InputError(
                    f"{location}: {name} is {stated!r}, and the file is taken to be of {code}, by its name or the "
                    "option; name the file after its language, or divide it"
                )


@contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of text to read its bytes, those of a gzip file decompressed.

    Raises:
        InputError: the file cannot be read, is a device, a pipe or a damaged gzip file, or its beginning shows that it
            is no text in UTF-8.
    """
    check_regular(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if start == b"PAR1":
                raise InputError(f"{path}: a Parquet file; give it a name that ends in .parquet")
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{path}: UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}")
            if start.startswith(b"\x1f\x8b"):
                with gzip.open(stream) as decompressed:
                    yield cast(IO[bytes], decompressed)
            else:
                yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from None


def read_lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """Yield the lines of a file of JSON lines.

    Raises:
        InputError: a line is too long to be a row, as in a file that is no JSON lines.
    """
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB; one JSON object per line is expected"
            )
        yield line


def read_records(path: Path) -> Iterator[Record]:
    """Yield the lines of a JSON-lines file; blank lines, a byte-order mark and ``\\r\\n`` are tolerated.

    Raises:
        InputError: the file cannot be read or is empty, or a line is not a JSON object in UTF-8.
    """
    is_empty = True
    with open_input(path) as stream:
        for number, line in enumerate(read_lines(stream, path), start=1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                is_empty = False
                location = f"{path}:{number}"
                yield Record(location, _parse_object(content.rstrip(b"\n"), location))
    if is_empty:
        raise InputError(f"{path}: the file is empty; one JSON object per line is expected")


def _parse_object(line: bytes, location: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not UTF-8 ({error.reason} at byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{location}: broken JSON ({error.msg}, column {error.colno}); one JSON object per line is expected"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or thousands of nested brackets
        raise InputError(f"{location}: JSON that cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(value, dict):
        raise InputError(f"{location}: a JSON object is expected, not {json.dumps(value, ensure_ascii=False)[:40]}")
    return value


def read_csv(file: Path, required: Sequence[Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows below the header, each with the number of its last line.

    Args:
        required: Columns that the file must have, each as the names that it may go by.

    Raises:
        InputError: the file cannot be read or is not CSV in UTF-8, or a required column is missing or twice there.
    """
    try:
        with open_input(file) as stream:
            reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
            header = next(reader, [])
            if missing := [" or ".join(names) for names in required if not set(names) & set(header)]:
                found = f"columns found: {', '.join(header)}" if header else "the file is empty"
                raise InputError(f"{file}:1: no column {' and '.join(missing)}; {found}")
            if repeated := [name for name in header if name and header.count(name) > 1]:
                raise InputError(f"{file}:1: two columns {repeated[0]!r}; columns found: {', '.join(header)}")
            for values in filter(None, reader):
                line = reader.line_num
                if len(values) != len(header):
                    problem = f"{len(values)} values for {len(header)} columns; quote texts that hold commas"
                    raise InputError(f"{file}:{line}: {problem}")
                yield line, dict(zip(header, values, strict=True))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}:{_undecodable_line(file)}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: broken CSV: {error}") from None


def _undecodable_line(file: Path) -> int:
    """Return the number of the first line that is not UTF-8. A decoder that reads in blocks does not say."""
    with open_input(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
