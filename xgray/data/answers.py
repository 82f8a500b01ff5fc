"""Read what other scorers said of rated texts: CSV files with a column of their answers.

A file has the column ``index``, or ``text`` where there is no index, by which its rows are matched with rated texts. A
folder holds a file for each language, ``{language}.csv``; a single file is named after its language or has the column
``language``. An empty cell is a missing answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xgray.data.ratings import LABEL_SCALE, FloatArray, RatedTexts, Scale
from xgray.data.source import read_csv, resolve_input
from xgray.errors import InputError
from xgray.languages import language

FORM = "--other NAME=PATH:COLUMN or NAME=PATH:COLUMN:LOW-HIGH, such as gpt4=answers:toxicity:1-5"
OTHER = re.compile(r"(?P<name>[^=]+)=(?P<path>.+?):(?P<column>[^:]+?)(?::(?P<scale>[^:]+))?")
SCALE = re.compile(r"(-?[\d.]+)-([\d.]+)")


@dataclass(frozen=True)
class Answers:
    """Where another scorer's answers are."""

    name: str
    path: str
    """A CSV file, or a folder of ``{language}.csv`` files."""
    column: str
    scale: Scale


def parse_scale(text: str, option: str) -> Scale:
    """Return the scale that ``LOW-HIGH`` names.

    Raises:
        InputError: it is no such range.
    """
    match = SCALE.fullmatch(text.strip())
    try:
        scale = Scale(float(match[1]), float(match[2])) if match else None
    except ValueError:
        scale = None
    if scale is None or scale.low >= scale.high:
        raise InputError(f"{option}: a scale is written LOW-HIGH, such as 1-5, not {text!r}")
    return scale


def parse_other(option: str) -> Answers:
    """Return what one ``--other`` names; the scale is 0 to 1 by default.

    Raises:
        InputError: it is written in another form.
    """
    match = OTHER.fullmatch(option)
    if match is None:
        raise InputError(f"--other {option}: written {FORM}")
    scale = LABEL_SCALE if match["scale"] is None else parse_scale(match["scale"], f"--other {option}")
    return Answers(match["name"].strip(), match["path"], match["column"], scale)


def read_answers(answers: Answers, rated: Mapping[str, RatedTexts]) -> dict[str, FloatArray]:
    """Return the answers on the rated texts of each language that has any, ``(num_texts,)`` in [0, 1], NaN if missing.

    Raises:
        InputError: there is no such file or column, a value is wrong, two rows of one text differ, or no rated text has
            an answer.
    """
    source = resolve_input(answers.path, "answers of another scorer")
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    values: dict[str, dict[str, float]] = {}
    keys: dict[str, str] = {}
    for file in files:
        for place, code, key, row in _rows(file, answers.column):
            keys.setdefault(code, key)
            value = _value(row[answers.column], answers, place)
            known = values.setdefault(code, {}).setdefault(row[key].strip(), value)
            if known != value and not (np.isnan(known) and np.isnan(value)):
                raise InputError(
                    f"{place}: another row has another {answers.column} for the {key} {row[key].strip()!r}"
                )
    found = {}
    for code, texts in rated.items():
        names = texts.indices if keys.get(code) == "index" else [text.strip() for text in texts.texts]
        scores = np.array([values.get(code, {}).get(name, np.nan) for name in names])
        if not np.isnan(scores).all():
            found[code] = scores
    if not found:
        raise InputError(
            f"{source}: no row has the index or text of a rated text; languages there: {' '.join(values) or 'none'}, "
            f"rated: {' '.join(rated)}"
        )
    return found


def _rows(file: Path, column: str) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return each row with its place, language and the column that names its text."""
    rows = []
    for line, row in read_csv(file, (("index", "text"), (column,))):
        place = f"{file}:{line}"
        try:
            code = language(row.get("language") or file.stem).code
        except InputError as error:
            raise InputError(f"{place}: add the column language, or name the file after it: {error}") from None
        rows.append((place, code, "index" if "index" in row else "text", row))
    return rows


def _value(text: str, answers: Answers, place: str) -> float:
    """Return an answer on the unit scale; NaN for an empty cell."""
    if not text.strip():
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{place}: {answers.column}: a number is expected, not {text!r}") from None
    if not answers.scale.low <= value <= answers.scale.high:
        raise InputError(
            f"{place}: {answers.column}: {text.strip()} is not on the scale {answers.scale}. Name the scale behind the "
            f"column: --other {answers.name}={answers.path}:{answers.column}:LOW-HIGH"
        )
    return float(answers.scale.to_unit(np.array(value)))
