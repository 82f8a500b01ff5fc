"""Locate input files, and read CSV and JSON-lines files, with the place of each row for messages.

JSON lines are split on ``\\n`` only: texts may hold U+2028.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from xgray.errors import InputError
from xgray.storage.parse import check_regular


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


def read_records(path: Path) -> Iterator[Record]:
    """Yield the lines of a JSON-lines file; blank lines, a byte-order mark and ``\\r\\n`` are tolerated.

    Raises:
        InputError: the file cannot be read or is empty, or a line is not a JSON object in UTF-8.
    """
    is_empty = True
    check_regular(path)
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    is_empty = False
                    location = f"{path}:{number}"
                    yield Record(location, _parse_object(content.rstrip(b"\n"), location))
    except OSError as error:
        raise InputError(f"{path}: cannot read it: {error.strerror}") from None
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
    check_regular(file)
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
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
    except OSError as error:
        raise InputError(f"{file}: cannot read it: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}:{_undecodable_line(file)}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: broken CSV: {error}") from None


def _undecodable_line(file: Path) -> int:
    """Return the number of the first line that is not UTF-8. A decoder that reads in blocks does not say."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
