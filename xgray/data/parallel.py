"""Parallel prompts: the same prompts in several languages, line i of one translating line i of every other.

A folder of the released ``dpo_toxicity_pairwise_{lang}_200.jsonl`` files, or of ``RTP_LX_{CODE}.json`` files whose
lines translate each other, as the embedded ones do. That they do cannot be seen from the texts: what is checked is
that the files are of one length, and that lines that carry an ``Index`` agree on it.

The released files of 14 languages hold HTML entities (``&quot;``, ``&#39;``), 1 to 113 of the 200 lines each; those of
English, Japanese and Chinese hold none. Left in, they are a difference between languages that is no difference of
language.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.storage.fingerprint import file_fingerprint, fingerprint

ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
"""An entity with its semicolon: html.unescape alone would also take ``&copy`` in ``a&copy=b``."""


def read_parallel(folder: str, languages: Sequence[str], repair_entities: bool = True) -> dict[str, list[str]]:
    """The prompts of each language; line i of one language translates line i of every other.

    Args:
        repair_entities: whether HTML entities become the characters that they stand for.

    Raises:
        InputError: a language's file is missing, a line is broken or empty, the files differ in length, or lines of
            the same number have different indices.
    """
    files = parallel_files(folder, languages)
    lines = {code: list(read_records(file)) for code, file in files.items()}
    if len({len(one) for one in lines.values()}) > 1:
        counts = ", ".join(f"{files[code].name} {len(one)}" for code, one in lines.items())
        raise InputError(f"{resolve_input(folder, 'prompts')}: parallel files must have as many prompts each: {counts}")
    _check_indices(list(lines.values()))
    prompts = {code: [record.nonempty_text("Prompt") for record in one] for code, one in lines.items()}
    if not repair_entities:
        return prompts
    return {code: [ENTITY.sub(_character, text) for text in texts] for code, texts in prompts.items()}


def parallel_files(folder: str, languages: Sequence[str]) -> dict[str, Path]:
    """The file of each language, by its code.

    Raises:
        InputError: one of them is missing.
    """
    source = resolve_input(folder, "prompts")
    released = {code: source / f"dpo_toxicity_pairwise_{known.short}_200.jsonl" for code, known in LANGUAGES.items()}
    rtp_lx = {code: source / f"RTP_LX_{known.rtp_lx}.json" for code, known in LANGUAGES.items()}
    files = rtp_lx if any(file.is_file() for file in rtp_lx.values()) else released
    codes = [language(one).code for one in languages]
    for code in codes:
        if not files[code].is_file():
            present = " ".join(known for known, file in files.items() if file.is_file()) or "none"
            raise InputError(f"{files[code]}: no such file; languages present: {present}")
    return {code: files[code] for code in codes}


def parallel_fingerprint(folder: str, languages: Sequence[str]) -> str:
    """What identifies the prompts: each language's file.

    Raises:
        InputError: one of them is missing.
    """
    return fingerprint({code: file_fingerprint(file) for code, file in parallel_files(folder, languages).items()})


def _check_indices(lines: Sequence[Sequence[Record]]) -> None:
    for same in zip(*lines, strict=True):
        indexed = [record for record in same if "Index" in record.fields]
        for record in indexed[1:]:
            here, there = record.fields["Index"], indexed[0].fields["Index"]
            if str(here).strip() != str(there).strip():  # text in some files, a number in others
                raise InputError(
                    f"{record.location}: Index {here!r}, but {there!r} in {indexed[0].location}; lines of the same number "
                    "must translate each other: sort the files by Index, and keep what all of them have"
                )


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])
