"""Read labelled comments: a folder of ``{language}.csv`` files with the columns ``text,label,split``, or a single file.

``label`` is 1 for toxic and 0 for benign; ``split`` is ``fit`` or ``validate``. A file without the ``split`` column is
split here: for each label, a share of its distinct texts (every third) is kept for validation, in the order of their
SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

from xgray.data.source import check_language, read_csv, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.storage.fingerprint import fingerprint

log = logging.getLogger(__name__)

SPLITS = ("fit", "validate")
VALIDATE_SHARE = Fraction(1, 3)


@dataclass(frozen=True)
class CsvFormat:
    """How a CSV file names its columns and its labels."""

    text_columns: tuple[str, ...]
    """Names of the column of texts; the first that the file has is read."""
    label_columns: tuple[str, ...]
    labels: Mapping[str, bool]
    """Whether a label, in lower case, means toxic."""


LABELS = {
    **dict.fromkeys(("1", "1.0", "true", "toxic"), True),
    **dict.fromkeys(("0", "0.0", "false", "not toxic", "not_toxic", "non-toxic", "nontoxic", "benign"), False),
}
LABELLED = CsvFormat(("text",), ("label",), LABELS)
"""The files of :func:`read_labelled`."""
COMMENTS = CsvFormat(
    ("text", "comment_text", "comment"),
    ("label", "toxic", "is_toxic"),
    LABELS,
)
"""The file of :func:`read_comments`: in the format of :data:`LABELLED`, of Jigsaw or of other collections."""


@dataclass(frozen=True)
class LabelledText:
    """A comment with its label."""

    text: str
    language: str
    toxic: bool
    split: str
    """``fit`` or ``validate``."""


def read_labelled(path: str) -> list[LabelledText]:
    """Return the labelled texts of a folder, or of one ``{language}.csv`` file, in the order of languages and lines.

    Every language has toxic and benign texts in both splits, and no text is in both.

    Raises:
        InputError: there is no such file, a line is wrong, or a label is missing from a split.
    """
    source = resolve_input(path, "labelled")
    files = sorted(source.glob("*.csv")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: the folder holds no {{language}}.csv files")
    by_language: dict[str, list[LabelledText]] = {}
    for file in files:
        try:
            code = language(file.stem).code
        except InputError as error:
            raise InputError(f"{file}: the file must be named after its language, such as en.csv: {error}") from None
        if code in by_language:
            raise InputError(f"{file}: {code} has another file in this folder; keep one of them")
        by_language[code] = _with_splits(file, _read_rows(file, code, LABELLED), VALIDATE_SHARE)
    return [text for code in LANGUAGES for text in by_language.get(code, [])]


def read_comments(
    path: str,
    share: float,
    seed: int,
    limit: int | None = None,
    split: Callable[[int], tuple[list[int], list[int]]] | None = None,
) -> list[LabelledText]:
    """Return the English comments of one CSV file, in its order.

    The columns and labels that the file may have are those of :data:`COMMENTS`; other columns are ignored. Jigsaw's
    ``train.csv`` is one such file.

    Args:
        path: The file, or ``embedded``.
        share: Share of the distinct texts of each label that is kept for validation if the file has no ``split``
            column.
        seed: Determines which texts those are.
        limit: At most this many texts, the first ones.
        split: Returns the positions of the texts to fit on and of those to validate on, given their number. If the file
            has no ``split`` column it takes the place of ``share`` and ``seed``, and the texts come in its order.

    Raises:
        InputError: there is no such file, a line is wrong, or a label is missing from a split.
    """
    source = resolve_input(path, "labelled")
    if path == "embedded":
        source /= "en.csv"
    if source.is_dir():
        raise InputError(f"{source}: a folder; name one CSV file in it")
    texts = _read_rows(source, "en", COMMENTS, limit)
    among = f" among the first {limit} rows" if limit else ""
    if split is not None and not texts[0].split:
        fit, validate = split(len(texts))
        texts = [
            replace(texts[row], split=name) for name, rows in zip(SPLITS, (fit, validate), strict=True) for row in rows
        ]
    return _with_splits(source, texts, Fraction(share).limit_denominator(10**6), f"{seed}:", among)


def labelled_fingerprint(path: str) -> str:
    """Return the SHA-256 of the texts that :func:`read_labelled` returns, whatever files they come from."""
    return texts_fingerprint(read_labelled(path))


def texts_fingerprint(texts: Sequence[LabelledText]) -> str:
    """Return the SHA-256 of labelled texts, in hexadecimal."""
    return fingerprint({"labelled": [asdict(text) for text in texts]})


def _read_rows(file: Path, code: str, columns: CsvFormat, limit: int | None = None) -> list[LabelledText]:
    """Return the rows of a file; their split is empty if the file has no column for it."""
    texts: list[LabelledText] = []
    first: dict[str, tuple[str, int]] = {}  # of each text: its split, and its first line
    for line, row in islice(read_csv(file, (columns.text_columns, columns.label_columns)), limit):
        check_language(row, f"{file}:{line}", code)
        text = _value_of(row, columns.text_columns, f"{file}:{line}")
        label = _value_of(row, columns.label_columns, f"{file}:{line}").strip()
        split = row.get("split", "").strip()
        if not text.strip():
            raise InputError(f"{file}:{line}: text is empty")
        if label.lower() not in columns.labels:
            raise InputError(f"{file}:{line}: label must be 1 (toxic) or 0 (benign), not {label!r}")
        if "split" in row and split not in SPLITS:
            raise InputError(f"{file}:{line}: split must be fit or validate, not {split!r}")
        first_split, first_line = first.setdefault(text, (split, line))
        if first_split != split:
            raise InputError(f"{file}:{line}: the same text is a {first_split} row on line {first_line}; keep one row")
        texts.append(LabelledText(text, code, columns.labels[label.lower()], split))
    if not texts:
        raise InputError(f"{file}: no rows below the header; text,label,split are expected")
    toxic, benign = ({text.text for text in texts if text.toxic == is_toxic} for is_toxic in (True, False))
    if both := toxic & benign:
        log.warning("%s: %d texts are labelled toxic in one row and benign in another", file, len(both))
    return texts


def _value_of(row: Mapping[str, str], names: Sequence[str], location: str) -> str:
    """Return the value of the one of these columns that the row has; several must agree."""
    values = {name: row[name] for name in names if name in row}
    if len(set(values.values())) > 1:
        found = ", ".join(f"{name} {value!r:.40}" for name, value in values.items())
        raise InputError(f"{location}: {found}; the columns mean the same and differ: keep one of them")
    return next(iter(values.values()))


def _with_splits(
    file: Path, texts: list[LabelledText], share: Fraction, salt: str = "", among: str = ""
) -> list[LabelledText]:
    """Return the texts with their splits, and check that both labels are in both splits.

    Args:
        share: Share that is kept for validation if the file has no split.
        salt: Text that changes which texts those are.
        among: What was read of the file, for the message.
    """
    if not texts[0].split:
        texts = _split(texts, share, salt)
    for split in SPLITS:
        for toxic, meaning in ((True, "toxic rows (label 1)"), (False, "benign rows (label 0)")):
            if not any(text.toxic == toxic and text.split == split for text in texts):
                raise InputError(f"{file}: no {meaning} to {split}{among}; both labels are needed in both splits")
    return texts


def _split(texts: list[LabelledText], share: Fraction, salt: str) -> list[LabelledText]:
    """Return the texts with splits, stratified by label; equal texts are in the same split."""
    validate: set[str] = set()
    for toxic in (True, False):
        distinct = {text.text for text in texts if text.toxic == toxic} - validate
        ordered = sorted(distinct, key=lambda text: hashlib.sha256((salt + text).encode()).digest())
        # Exact fractions: a share of 1/3 takes the third, the sixth and so on.
        validate.update(text for at, text in enumerate(ordered) if (at + 1) * share // 1 > at * share // 1)
    return [replace(text, split="validate" if text.text in validate else "fit") for text in texts]
