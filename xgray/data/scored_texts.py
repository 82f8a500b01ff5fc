"""Read the sources of a scorer's training: texts with a value in [0, 1] for each attribute that was judged.

    labelled   classes of comments, 1 or 0
    ratings    RTP-LX's answers of human raters, or a CSV file of raters' answers (:mod:`xgray.data.ratings`)
    scores     numbers in named columns, or PolygloToxicityPrompts with an answer of Perspective for each of three texts

A row becomes one :class:`ScoredText` or, in PolygloToxicityPrompts, three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xgray.config import TextSource
from xgray.data.archives.polyglo_toxicity_prompts import PolygloRow, row_language
from xgray.data.archives.rows import SUFFIXES, first_row, read_rows
from xgray.data.labelled import COMMENTS, SPLITS
from xgray.data.ratings import Scale, read_ratings
from xgray.data.source import Record, folder_language, plain_name, read_csv, resolve_input
from xgray.errors import InputError
from xgray.languages import language
from xgray.storage.fingerprint import file_fingerprint, fingerprint


@dataclass(frozen=True)
class ScoredText:
    """A text and what is said of it."""

    text: str
    language: str
    targets: dict[str, float]
    """The value of each attribute that was judged, in [0, 1]."""
    group: str
    """Equal for texts that must be held out together, such as translations; empty where the text stands alone."""
    split: str = ""
    """``fit`` or ``validate`` where the file says so."""


@dataclass(frozen=True)
class SourceTexts:
    """All texts of one source, as columns."""

    name: str
    texts: list[str]
    languages: list[str]
    targets: npt.NDArray[np.float32]
    """``(n, num_attributes)``, NaN where an attribute was not judged."""
    groups: list[str]
    is_validation: npt.NDArray[np.bool_]
    """``(n,)``: whether the file itself holds the text out."""
    num_left_out: int
    """Texts that are empty or of which nothing is said."""


def source_name(source: TextSource) -> str:
    """Return the name of a source: its own, or that of its file or folder."""
    return source.name or Path(source.path).stem


def source_files(source: TextSource) -> list[Path]:
    """Return the files of a source, sorted.

    Raises:
        InputError: there are none, or the file is of another kind.
    """
    path = resolve_input(source.path, f"source {source_name(source)}")
    if not path.is_dir():
        if plain_name(path).suffix not in SUFFIXES:
            raise InputError(f"{path}: a source is a file of {', '.join(SUFFIXES)}, or a folder of such files")
        return [path]
    files = sorted(file for file in path.rglob("*") if plain_name(file).suffix in SUFFIXES)
    if not files:
        raise InputError(f"{path}: the folder holds no {', '.join(SUFFIXES)} files (source {source_name(source)})")
    return files


def source_fingerprint(source: TextSource) -> str:
    """Return the SHA-256 of the names and contents of a source's files."""
    return fingerprint({"files": [[file.name, file_fingerprint(file)] for file in source_files(source)]})


def read_source(source: TextSource, attributes: Sequence[str]) -> SourceTexts:
    """Return the texts of a source, with a column of targets for each of ``attributes``.

    Raises:
        InputError: a file or a value in it is wrong, or no text is left; the message names the file and the line.
    """
    read = {"labelled": read_labels, "ratings": read_rated, "scores": read_scores}[source.kind]
    rows: list[ScoredText] = []
    num_left_out = 0
    for row in read(source, attributes):
        if row.text.strip() and row.targets:
            rows.append(row)
        else:
            num_left_out += 1
    name = source_name(source)
    if not rows:
        raise InputError(f"{source.path}: no text with a value of {', '.join(attributes)} (source {name})")
    targets = np.array([[row.targets.get(name, np.nan) for name in attributes] for row in rows], np.float32)
    if source.kind == "labelled":
        _check_classes(source, attributes, targets)
    return SourceTexts(
        name=name,
        texts=[row.text for row in rows],
        languages=[row.language for row in rows],
        targets=targets,
        groups=[row.group for row in rows],
        is_validation=np.array([row.split == "validate" for row in rows]),
        num_left_out=num_left_out,
    )


def read_labels(source: TextSource, attributes: Sequence[str]) -> Iterator[ScoredText]:
    """Yield the texts of files of labels, 1 or 0 in each column; an empty cell says nothing of the attribute.

    Raises:
        InputError: a column is missing, or a value is no class.
    """
    columns = source.columns or {"toxicity": "label"}
    for file in source_files(source):
        for record in _rows(source, file, columns):
            values = {name: _label(record, column) for name, column in columns.items() if name in attributes}
            yield _scored_text(source, file, record, values)


def read_scores(source: TextSource, attributes: Sequence[str]) -> Iterator[ScoredText]:
    """Yield the texts of files of scores; an empty cell says nothing of the attribute.

    Raises:
        InputError: a column is missing, or a value is not a number on the source's scale.
    """
    scale = source.scale or (0.0, 1.0)
    for file in source_files(source):
        if not source.columns:
            yield from _read_polyglo(source, file, attributes)
            continue
        for record in _rows(source, file, source.columns):
            values = {name: _number(record, column, scale) for name, column in source.columns.items()}
            yield _scored_text(source, file, record, values)


def read_rated(source: TextSource, attributes: Sequence[str]) -> Iterator[ScoredText]:
    """Yield the texts of files of ratings, with the mean of their raters as a share of the scale.

    Translations of a prompt have the same index, and so the same group, also in several sources.

    Raises:
        InputError: a file or a rating is wrong, or texts are of another language than the source.
    """
    ratings = read_ratings([source.path], Scale(*source.scale) if source.scale else None)
    for code, rated in ratings.languages.items():
        if source.language not in (None, code):
            raise InputError(f"{source.path}: texts of {code} in the source {source_name(source)} of {source.language}")
        means = {
            name: _means(rated.ratings[name], ratings.scales[name]) for name in attributes if name in rated.ratings
        }
        for row, text in enumerate(rated.texts[: source.limit]):
            targets = {name: float(values[row]) for name, values in means.items() if not math.isnan(values[row])}
            yield ScoredText(text, code, targets, f"rated {rated.indices[row]}")


def _means(ratings: npt.NDArray[np.float64], scale: Scale) -> npt.NDArray[np.float64]:
    """Return the mean of each text's raters on the unit scale, NaN where there is none."""
    given = ~np.isnan(ratings)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(scale.to_unit(ratings), axis=1) / given.sum(axis=1))


def _read_polyglo(source: TextSource, file: Path, attributes: Sequence[str]) -> Iterator[ScoredText]:
    """Yield three texts for each row of PolygloToxicityPrompts: the whole text, its beginning and its rest.

    Raises:
        InputError: the file has another form, or a score is not a number in [0, 1].
    """
    if missing := sorted({"perspective", "prompt_perspective", "continuation_perspective"} - set(first_row(file))):
        raise InputError(
            f"{file}: no column {missing[0]!r}, so it is not PolygloToxicityPrompts; name the columns of the "
            f"attributes (columns: {{toxicity: COLUMN}}) in source {source_name(source)}"
        )
    for number, (where, row) in enumerate(islice(read_rows(file, PolygloRow), source.limit)):
        code = source.language or row_language(row.meta_data, where)
        if code is None:
            raise InputError(f"{where}: xgray does not know the language in meta_data; take the row out")
        for text, scores in row.scored_texts(where):
            targets = {name: scores[name] for name in attributes if name in scores}
            yield ScoredText(text, code, targets, f"{source_name(source)}/{file.name} row {number}")


def _rows(source: TextSource, file: Path, columns: dict[str, str]) -> Iterator[Record]:
    """Yield the rows of a CSV, JSON-lines or Parquet file.

    Raises:
        InputError: the file cannot be read, or a column is missing.
    """
    required = [source.text_column, *columns.values()]
    required += [source.group_column] if source.group_column else []
    rows: Iterator[Record]
    if plain_name(file).suffix == ".csv":
        rows = (Record(f"{file}:{line}", row) for line, row in read_csv(file, [(name,) for name in required]))
    else:
        rows = (Record(where, fields) for where, fields in read_rows(file, dict[str, Any]))
    for record in islice(rows, source.limit):
        if missing := [name for name in required if name not in record.fields]:
            raise InputError(
                f"{record.location}: no column {missing[0]!r} (found: {', '.join(record.fields)}); correct it in "
                f"source {source_name(source)}"
            )
        yield record


def _scored_text(source: TextSource, file: Path, record: Record, values: dict[str, float | None]) -> ScoredText:
    """Return the text of a row, with the values that are present."""
    split = str(record.fields.get("split") or "").strip() if source.kind == "labelled" else ""
    if split and split not in SPLITS:
        raise InputError(f"{record.location}: split must be fit or validate, not {split!r}")
    group = f"{source_name(source)}/{record.fields[source.group_column]}" if source.group_column else ""
    return ScoredText(
        text=record.text(source.text_column) if record.fields[source.text_column] is not None else "",
        language=_language(source, file, record, record.fields.get("language")),
        targets={name: value for name, value in values.items() if value is not None},
        group=group,
        split=split,
    )


def _language(source: TextSource, file: Path, record: Record, stated: Any) -> str:
    """Return the language of a row: the source's, the row's own, or that of the file's or the folder's name."""
    if source.language is not None:
        return source.language
    if stated:
        return _known_language(record.location, str(stated))
    for name in (plain_name(file).stem, file.parent.name, folder_language(file) or ""):
        try:
            return language(name).code
        except InputError:
            continue
    raise InputError(
        f"{record.location}: the language is not known: name it in source {source_name(source)} (language: en), add a "
        "column 'language', or name the file after it"
    )


def _known_language(location: str, code: str) -> str:
    try:
        return language(code).code
    except InputError as error:
        raise InputError(f"{location}: {error}") from None


def _label(record: Record, column: str) -> float | None:
    value = record.fields[column]
    if value is None or value == "":
        return None
    name = str(value).strip().lower()
    if name not in COMMENTS.labels:
        raise InputError(f"{record.location}: {column} must be 1 (toxic) or 0 (benign), not {value!r}")
    return float(COMMENTS.labels[name])


def _number(record: Record, column: str, scale: tuple[float, float]) -> float | None:
    """Return a value of the row as a share of its scale, None for an empty cell."""
    value = record.fields[column]
    if value is None or value == "":
        return None
    return _share(record.location, column, value, scale)


def _share(location: str, what: str, value: Any, scale: tuple[float, float]) -> float:
    """Return where a value lies between the ends of its scale, in [0, 1]."""
    low, high = scale
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise InputError(
            f"{location}: {what} is {value!r}, not a number from {low:g} to {high:g}; correct it, or the source's scale"
        )
    return (number - low) / (high - low)


def _check_classes(source: TextSource, attributes: Sequence[str], targets: npt.NDArray[np.float32]) -> None:
    """Refuse labels that are all equal: they would teach a constant."""
    for column, name in enumerate(attributes):
        labels = targets[~np.isnan(targets[:, column]), column]
        if len(labels) and labels.min() == labels.max():
            raise InputError(
                f"{source.path}: all {len(labels)} labels of {name} are {labels[0]:.0f}; both classes are needed "
                f"(source {source_name(source)})"
            )


def targets_without_variance(targets: npt.NDArray[np.float32], attributes: Sequence[str]) -> list[str]:
    """Return the attributes of which nothing can be learned, each with the reason.

    Args:
        targets: ``(n, num_attributes)``, NaN where an attribute was not judged.
    """
    reasons = []
    for column, name in enumerate(attributes):
        values = targets[~np.isnan(targets[:, column]), column]
        if not len(values):
            reasons.append(f"{name}: no source judges it")
        elif values.min() == values.max():
            reasons.append(f"{name}: all {len(values)} texts have the value {values[0]:g}")
    return reasons
