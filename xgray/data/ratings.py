"""Read texts that people have rated or labelled.

- RTP-LX: a folder of ``RTP_LX_{CODE}.json`` files, or one of them. JSON lines with ``Prompt``, ``Index``, ``Locale``
  and the ratings: ``AnnotationsRaw`` holds a list for each harm, one rating of each rater; ``Annotations`` holds their
  means, and is read where there is no ``AnnotationsRaw``. Prompts with the same index translate each other.
- CSV: one file, or a folder of ``{language}.csv`` or ``{language}/{source}.csv`` files, with the column ``text`` and
  either ``label`` (1 toxic, 0 benign) or columns of raters (``rater_1``, ``rater_2`` ...), which may be empty in some
  rows. The columns ``language``, ``index`` and ``source`` are read where they exist. Texts with the same index are
  drawn together when an interval is computed; without the column every text has an index of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xgray.data.labelled import COMMENTS
from xgray.data.prompts import locale_language, record_index
from xgray.data.source import Record, read_csv, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.storage.fingerprint import fingerprint

FloatArray = npt.NDArray[np.float64]

RATER = "rater"
"""How the names of the columns of raters begin."""


@dataclass(frozen=True)
class Scale:
    """The points from ``low`` to ``high`` that raters choose from."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_unit(self, ratings: FloatArray) -> FloatArray:
        """Return ratings on the unit scale: 0 for ``low``, 1 for ``high``."""
        return (ratings - self.low) / (self.high - self.low)

    def from_unit(self, values: FloatArray) -> FloatArray:
        """Return the values on this scale of values on the unit scale."""
        return self.low + values * (self.high - self.low)


TOXICITY_SCALE, HARM_SCALE, LABEL_SCALE = Scale(1, 5), Scale(1, 3), Scale(0, 1)
"""RTP-LX's scale of toxicity, that of its other harms, and that of labels and votes."""


@dataclass(frozen=True)
class Harm:
    """What an attribute is to RTP-LX's raters."""

    name: str
    """The harm's key in the annotations."""
    scale: Scale
    at_least: float | None = None
    """Where it is set, the attribute is a vote of each rater: whether the rating is at least this."""


HARMS: dict[str, Harm] = {
    "toxicity": Harm("Toxicity", TOXICITY_SCALE),
    "severe_toxicity": Harm("Toxicity", TOXICITY_SCALE, at_least=4),
    "identity_attack": Harm("IdentityAttack", HARM_SCALE),
    "insult": Harm("Insult", HARM_SCALE),
    "threat": Harm("Violence", HARM_SCALE),
    "sexually_explicit": Harm("SexualContent", HARM_SCALE),
}
"""By attribute. RTP-LX's raters do not rate profanity; Bias, Microaggression and SelfHarm are no attributes."""


@dataclass(frozen=True)
class RatedTexts:
    """The texts of one language with their ratings."""

    texts: list[str]
    indices: list[str]
    """Texts of the same index are translations of each other, or belong together otherwise."""
    sources: list[str]
    """Where each text is from; empty where the data does not say."""
    ratings: dict[str, FloatArray]
    """By attribute, ``(num_texts, num_raters)`` on the attribute's scale; NaN where a rater gave none. Every text has a
    rating of some attribute."""


@dataclass(frozen=True)
class Ratings:
    """Rated texts of one or more languages."""

    data: str
    """What was rated, in words."""
    scales: dict[str, Scale]
    """By attribute."""
    languages: dict[str, RatedTexts]
    """In the order of :data:`~xgray.languages.LANGUAGES`."""
    num_unrated: int
    """Texts without any rating; they are left out."""

    @property
    def num_raters(self) -> int:
        """The most raters that a text has."""
        return max(
            int((~np.isnan(ratings)).sum(axis=1).max())
            for rated in self.languages.values()
            for ratings in rated.ratings.values()
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, their indices and ratings, in hexadecimal."""
        languages = {
            code: [rated.texts, rated.indices, {name: str(values.tolist()) for name, values in rated.ratings.items()}]
            for code, rated in self.languages.items()
        }
        return fingerprint({"ratings": languages})


@dataclass
class _Rows:
    """Texts of one language while files are read."""

    scales: Mapping[str, Scale]
    texts: list[str] = field(default_factory=list)
    indices: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ratings: list[dict[str, list[float]]] = field(default_factory=list)
    num_unrated: int = 0

    def add(self, text: str, index: str, source: str, ratings: dict[str, list[float]]) -> None:
        """Add a text; one without ratings is counted only."""
        if all(math.isnan(rating) for values in ratings.values() for rating in values):
            self.num_unrated += 1
            return
        for column, value in ((self.texts, text), (self.indices, index), (self.sources, source)):
            column.append(value)
        self.ratings.append(ratings)

    def arrays(self) -> RatedTexts:
        """Return the texts with their ratings as arrays."""
        width = max(len(values) for ratings in self.ratings for values in ratings.values())
        arrays = {name: np.full((len(self.texts), width), np.nan) for name in self.scales}
        for row, ratings in enumerate(self.ratings):
            for name, values in ratings.items():
                arrays[name][row, : len(values)] = values
        return RatedTexts(self.texts, self.indices, self.sources, arrays)


def read_ratings(paths: Sequence[str], scale: Scale | None = None) -> Ratings:
    """Return the rated texts of files and folders, which are all of one form.

    Args:
        paths: RTP-LX's files or folders of them, or CSV files or folders of them.
        scale: the scale of CSV files' raters; by default RTP-LX's scale of toxicity, 1 to 5.

    Raises:
        InputError: there is no such file, files are of several forms, a line is wrong, a rating is out of scale or of
            another language than the file, a prompt is rated twice in different ways, or nothing is rated.
    """
    files = [file for path in paths for file in _files(resolve_input(path, "ratings"))]
    is_csv = {file.suffix.lower() == ".csv" for file in files}
    if len(is_csv) > 1:
        raise InputError(f"{', '.join(paths)}: RTP-LX's JSON lines and CSV files together; measure them one by one")
    if is_csv == {True}:
        return _read_csv_files(files, scale or TOXICITY_SCALE)
    if scale is not None:
        raise InputError(
            f"{files[0]}: RTP-LX's ratings have their own scales; leave out --scale, which is for CSV files"
        )
    return _read_rtp_lx(files)


def _files(source: Path) -> list[Path]:
    """Return a file itself, or the files of ratings in a folder."""
    if not source.is_dir():
        return [source]
    for pattern in ("RTP_LX_*.json", "*.csv", "*/*.csv"):
        if files := sorted(source.glob(pattern)):
            return files
    raise InputError(
        f"{source}: the folder holds no RTP_LX_{{CODE}}.json, {{language}}.csv or {{language}}/{{source}}.csv files"
    )


def _read_rtp_lx(files: Sequence[Path]) -> Ratings:
    scales = {name: LABEL_SCALE if harm.at_least else harm.scale for name, harm in HARMS.items()}
    by_language: dict[str, _Rows] = {}
    records: dict[tuple[str, str], Record] = {}
    for file in files:
        named = _language_in_name(file.stem.removeprefix("RTP_LX_"))
        for record in read_records(file):
            code = _record_language(record, named)
            index = record_index(record) if "Index" in record.fields else record.location
            first = records.setdefault((code, index), record)
            if first is not record:
                if first.fields == record.fields:  # a folder may repeat prompts of another
                    continue
                raise InputError(
                    f"{record.location}: Index {index!r} of {code} stands on {first.location} with another text or "
                    "other ratings; keep one of them"
                )
            ratings = {name: _harm_ratings(record, harm) for name, harm in HARMS.items()}
            rows = by_language.setdefault(code, _Rows(scales))
            rows.add(record.nonempty_text("Prompt"), index, "", ratings)
    return _collect("rated RTP-LX prompts", scales, by_language, files)


def _language_in_name(name: str) -> str | None:
    try:
        return language(name).code
    except InputError:
        return None


def _record_language(record: Record, named: str | None) -> str:
    """Return a line's language, which is the file's where its name says one."""
    if not record.fields.get("Locale"):
        if named is None:
            raise InputError(
                f"{record.location}: neither a Locale nor the file's name says the language; name the file "
                "RTP_LX_{CODE}.json"
            )
        return named
    code = locale_language(record)
    if named not in (None, code):
        raise InputError(f"{record.location}: Locale {record.fields['Locale']!r} in a file of {named} prompts")
    return code


def _harm_ratings(record: Record, harm: Harm) -> list[float]:
    """Return the raters' ratings of one harm; their mean where there is nothing else."""
    name = "AnnotationsRaw" if "AnnotationsRaw" in record.fields else "Annotations"
    annotations = record.fields.get(name)
    if not isinstance(annotations, dict):
        raise InputError(
            f"{record.location}: no AnnotationsRaw (or Annotations) with the raters' harms; fields of this line: "
            f"{', '.join(record.fields)}"
        )
    values = annotations.get(harm.name)
    values = values if isinstance(values, list) else [] if values is None else [values]
    ratings = [_in_scale(value, harm.scale, f"{record.location}: {name}.{harm.name}") for value in values]
    return ratings if harm.at_least is None else [float(rating >= harm.at_least) for rating in ratings]


def _in_scale(value: Any, scale: Scale, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not scale.low <= value <= scale.high:
        raise InputError(f"{where}: a rating from {scale} is expected, not {value!r}")
    return float(value)


def _read_csv_files(files: Sequence[Path], scale: Scale) -> Ratings:
    has_labels = {_has_labels(file) for file in files}
    if len(has_labels) > 1:
        raise InputError(f"{files[0].parent}: some files hold labels and others ratings; measure them one by one")
    is_labelled = has_labels == {True}
    scales = {"toxicity": LABEL_SCALE if is_labelled else scale}
    by_language: dict[str, _Rows] = {}
    for file in files:
        for place, code, row in _csv_rows(file):
            given = _label(row, place) if is_labelled else _csv_ratings(row, scale, place)
            text = next(row[name] for name in COMMENTS.text_columns if name in row)
            if not text.strip():
                raise InputError(f"{place}: text is empty")
            index = row.get("index", "").strip() or place
            source = row.get("source", "").strip() or (file.stem if _language_in_name(file.stem) is None else "")
            by_language.setdefault(code, _Rows(scales)).add(text, index, source, {"toxicity": given})
    ratings = _collect("labelled texts" if is_labelled else "rated texts", scales, by_language, files)
    if is_labelled:
        _check_classes(ratings)
    return ratings


def _has_labels(file: Path) -> bool:
    """Return whether a CSV file holds labels rather than ratings.

    Raises:
        InputError: it holds neither.
    """
    _, row = next(read_csv(file, (COMMENTS.text_columns,)), (0, {}))
    if any(name.startswith(RATER) for name in row):
        return False
    if any(name in row for name in COMMENTS.label_columns):
        return True
    found = f"columns found: {', '.join(row)}" if row else "no rows below the header"
    raise InputError(
        f"{file}: neither a column of raters ({RATER}_1, {RATER}_2 ...) nor one of labels "
        f"({', '.join(COMMENTS.label_columns)}); {found}"
    )


def _csv_rows(file: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield each row with its place and its language."""
    named = _language_in_name(file.stem) or _language_in_name(file.parent.name)
    for line, row in read_csv(file, (COMMENTS.text_columns,)):
        place = f"{file}:{line}"
        if not row.get("language", "").strip():
            if named is None:
                raise InputError(
                    f"{place}: no language; add the column language, or name the file after it, such as en.csv"
                )
            yield place, named, row
            continue
        try:
            code = language(row["language"].strip()).code
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        if _language_in_name(file.stem) not in (None, code):
            raise InputError(f"{place}: a {code} text in the file of {named} texts")
        yield place, code, row


def _label(row: Mapping[str, str], place: str) -> list[float]:
    label = next(row[name] for name in COMMENTS.label_columns if name in row).strip()
    if label.lower() not in COMMENTS.labels:
        raise InputError(f"{place}: label must be 1 (toxic) or 0 (benign), not {label!r}")
    return [float(COMMENTS.labels[label.lower()])]


def _csv_ratings(row: Mapping[str, str], scale: Scale, place: str) -> list[float]:
    ratings = []
    for name, value in row.items():
        if not name.startswith(RATER):
            continue
        try:
            rating = float(value) if value.strip() else math.nan
        except ValueError:
            raise InputError(f"{place}: {name}: a number is expected, not {value!r}") from None
        if value.strip() and not scale.low <= rating <= scale.high:
            raise InputError(
                f"{place}: {name}: a rating from {scale} is expected, not {value.strip()}. Name another scale with "
                "--scale LOW-HIGH"
            )
        ratings.append(rating)
    return ratings


def _check_classes(ratings: Ratings) -> None:
    for code, rated in ratings.languages.items():
        labels = np.unique(rated.ratings["toxicity"])
        if len(labels) == 1:
            name = "toxic (1)" if labels[0] else "benign (0)"
            raise InputError(f"{code}: all {len(rated.texts)} texts are labelled {name}; both labels are needed")


def _collect(data: str, scales: dict[str, Scale], rows: Mapping[str, _Rows], files: Sequence[Path]) -> Ratings:
    num_unrated = sum(in_language.num_unrated for in_language in rows.values())
    rated = {code: rows[code].arrays() for code in LANGUAGES if code in rows and rows[code].texts}
    if not rated:
        raise InputError(f"{files[0]}: none of {num_unrated} texts is rated; fill in the columns of the raters")
    return Ratings(data, scales, rated, num_unrated)
