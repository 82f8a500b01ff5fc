"""Labelled comments: a folder of ``{language}.csv`` files with the columns ``text,label,split``, or a single file.

``label`` is 1 for toxic and 0 for benign; ``split`` is ``fit`` or ``validate``. A file without the ``split`` column is
split here: of each label, a share of its distinct texts (every third) is kept for validation, in the order of their
SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

from xgray.data.source import read_csv, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.storage.fingerprint import fingerprint

SPLITS = ("fit", "validate")
VALIDATE_SHARE = Fraction(1, 3)
TEXT, LABEL = ("text",), ("label",)
TEXT_COLUMNS = ("text", "comment_text", "comment")
LABEL_COLUMNS = ("label", "toxic", "is_toxic")
"""The columns of a single file of comments, the first that it has: ours, Jigsaw's, and those of other collections."""
LABELS = {"1": True, "0": False}
WORDED_LABELS = LABELS | {"true": True, "false": False, "toxic": True, "not toxic": False}


@dataclass(frozen=True)
class LabelledText:
    text: str
    language: str
    toxic: bool
    split: str
    """``fit`` or ``validate``."""


def read_labelled(path: str) -> list[LabelledText]:
    """The labelled texts of a folder, or of one ``{language}.csv`` file, in the order of languages and lines.

    Every language has toxic and benign texts in both splits, and no text is in both.

    Raises:
        InputError: there is no such file, or a line or the balance of a file is wrong.
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
        by_language[code] = _read_file(file, code)
    return [one for code in LANGUAGES for one in by_language.get(code, [])]


def read_comments(path: str, share: float, seed: int, limit: int | None = None) -> list[LabelledText]:
    """The English comments of one CSV file, in its order.

    It has a column of texts, one of ``TEXT_COLUMNS``, and one of labels, of ``LABEL_COLUMNS``: 1, true or toxic, and 0,
    false or not toxic. Jigsaw's ``train.csv`` is one such file; others of its columns are passed over.

    Args:
        path: the file, or ``embedded``.
        share: of the distinct texts of each label, held out where the file has no ``split`` column; the seed says
            which.
        limit: at most this many texts, the first ones.

    Raises:
        InputError: there is no such file, a line is wrong, or a label is missing from a split.
    """
    source = resolve_input(path, "labelled")
    if path == "embedded":
        source /= "en.csv"
    if source.is_dir():
        raise InputError(f"{source}: a folder; name one CSV file in it")
    exact = Fraction(share).limit_denominator(10**6)
    texts = _rows(source, "en", TEXT_COLUMNS, LABEL_COLUMNS, WORDED_LABELS, limit)
    among = f" among the first {limit} rows" if limit else ""
    return _balanced(source, texts if texts[0].split else _split(texts, exact, f"{seed}:"), among)


def labelled_fingerprint(path: str) -> str:
    """SHA-256 of the texts that :func:`read_labelled` gives, whatever files they lie in."""
    return texts_fingerprint(read_labelled(path))


def texts_fingerprint(texts: Sequence[LabelledText]) -> str:
    return fingerprint({"labelled": [asdict(one) for one in texts]})


def _read_file(file: Path, code: str) -> list[LabelledText]:
    texts = _rows(file, code, TEXT, LABEL, LABELS)
    return _balanced(file, texts if texts[0].split else _split(texts, VALIDATE_SHARE))


def _rows(
    file: Path,
    code: str,
    text_columns: Sequence[str],
    label_columns: Sequence[str],
    labels: Mapping[str, bool],
    limit: int | None = None,
) -> list[LabelledText]:
    """The rows of a file, without a split where it has no column of it."""
    texts: list[LabelledText] = []
    first: dict[str, tuple[str, int]] = {}
    for line, row in islice(read_csv(file, (text_columns, label_columns)), limit):
        text, label, split = _first(row, text_columns), _first(row, label_columns).strip(), row.get("split", "").strip()
        if not text.strip():
            raise InputError(f"{file}:{line}: text is empty")
        if label.lower() not in labels:
            raise InputError(f"{file}:{line}: label must be 1 (toxic) or 0 (benign), not {label!r}")
        if "split" in row and split not in SPLITS:
            raise InputError(f"{file}:{line}: split must be fit or validate, not {split!r}")
        other, where = first.setdefault(text, (split, line))
        if other != split:
            raise InputError(f"{file}:{line}: the same text is a {other} row on line {where}; keep one of them")
        texts.append(LabelledText(text, code, labels[label.lower()], split))
    if not texts:
        raise InputError(f"{file}: no rows below the header; text,label,split are expected")
    return texts


def _first(row: Mapping[str, str], columns: Sequence[str]) -> str:
    return next(row[name] for name in columns if name in row)


def _balanced(file: Path, texts: list[LabelledText], among: str = "") -> list[LabelledText]:
    for split in SPLITS:
        for toxic, meaning in ((True, "toxic rows (label 1)"), (False, "benign rows (label 0)")):
            if not any(one.toxic == toxic and one.split == split for one in texts):
                raise InputError(f"{file}: no {meaning} to {split}{among}; both labels are needed in both splits")
    return texts


def _split(texts: list[LabelledText], share: Fraction, salt: str = "") -> list[LabelledText]:
    """The same texts with their splits, stratified by label; equal texts stay together."""
    validate: set[str] = set()
    for toxic in (True, False):
        distinct = {one.text for one in texts if one.toxic == toxic} - validate
        ordered = sorted(distinct, key=lambda text: hashlib.sha256((salt + text).encode()).digest())
        # Exact fractions: a share of 1/3 takes the third, the sixth and so on.
        validate.update(text for at, text in enumerate(ordered) if (at + 1) * share // 1 > at * share // 1)
    return [replace(one, split="validate" if one.text in validate else "fit") for one in texts]
