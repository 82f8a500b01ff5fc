"""Labelled comments: a folder of ``{language}.csv`` files with the columns ``text,label,split``.

``label`` is 1 for toxic and 0 for benign; ``split`` is ``fit`` or ``validate``. A file without the ``split`` column is
split here: of each label, every third of its distinct texts is kept for validation, in the order of their SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from xgray.data.source import csv_rows, located
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.runs import fingerprint

SPLITS = ("fit", "validate")
VALIDATE_EVERY = 3


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
    source = located(path, "labelled")
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


def labelled_fingerprint(path: str) -> str:
    """SHA-256 of the texts that :func:`read_labelled` gives, whatever files they lie in."""
    return texts_fingerprint(read_labelled(path))


def texts_fingerprint(texts: Sequence[LabelledText]) -> str:
    return fingerprint({"labelled": [asdict(one) for one in texts]})


def _read_file(file: Path, code: str) -> list[LabelledText]:
    texts: list[LabelledText] = []
    first: dict[str, tuple[str, int]] = {}
    for line, row in csv_rows(file, ("text", "label")):
        text, label, split = row["text"], row["label"].strip(), row.get("split", "").strip()
        if not text.strip():
            raise InputError(f"{file}:{line}: text is empty")
        if label not in ("0", "1"):
            raise InputError(f"{file}:{line}: label must be 1 (toxic) or 0 (benign), not {label!r}")
        if "split" in row and split not in SPLITS:
            raise InputError(f"{file}:{line}: split must be fit or validate, not {split!r}")
        other, where = first.setdefault(text, (split, line))
        if other != split:
            raise InputError(f"{file}:{line}: the same text is a {other} row on line {where}; keep one of them")
        texts.append(LabelledText(text, code, label == "1", split))
    if not texts:
        raise InputError(f"{file}: no rows below the header; text,label,split are expected")
    texts = texts if texts[0].split else _split(texts)
    for split in SPLITS:
        for toxic, meaning in ((True, "toxic rows (label 1)"), (False, "benign rows (label 0)")):
            if not any(one.toxic == toxic and one.split == split for one in texts):
                raise InputError(f"{file}: no {meaning} to {split}; both labels are needed in both splits")
    return texts


def _split(texts: list[LabelledText]) -> list[LabelledText]:
    """The same texts with their splits, stratified by label; equal texts stay together."""
    validate: set[str] = set()
    for toxic in (True, False):
        distinct = {one.text for one in texts if one.toxic == toxic} - validate
        ordered = sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())
        validate.update(ordered[VALIDATE_EVERY - 1 :: VALIDATE_EVERY])
    return [replace(one, split="validate" if one.text in validate else "fit") for one in texts]
