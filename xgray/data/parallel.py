"""Read parallel prompts: line i of one language's file translates line i of every other.

The files are the released ``dpo_toxicity_pairwise_{lang}_200.jsonl``, or ``RTP_LX_{CODE}.json`` files whose lines
translate each other, as the embedded ones do. Texts do not show whether they are translations, so the reader checks
only that all files have the same number of lines, and that lines with an ``Index`` agree on it.

The released files of 14 languages hold HTML entities (``&quot;``, ``&#39;``) in 1 to 113 of their 200 lines; those of
English, Japanese and Chinese hold none. If they stayed, they would make languages differ for a reason that is not
linguistic.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from xgray.data.prompts import record_index, rtp_lx_files
from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.storage.fingerprint import file_fingerprint, fingerprint

ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
"""An HTML entity with its semicolon: ``html.unescape`` alone would also take ``&copy`` in ``a&copy=b``."""


def read_parallel(folder: str, languages: Sequence[str], repair_entities: bool = True) -> dict[str, list[str]]:
    """Return the prompts of each language; prompt i of one language translates prompt i of every other.

    Args:
        repair_entities: Whether to replace HTML entities by the characters that they stand for.

    Raises:
        InputError: a language's file is missing, a line is broken or empty, the files differ in length, or lines of
            the same number have different indices.
    """
    files = parallel_files(folder, languages)
    records = {code: list(read_records(file)) for code, file in files.items()}
    if len({len(lines) for lines in records.values()}) > 1:
        counts = ", ".join(f"{files[code].name} {len(lines)}" for code, lines in records.items())
        raise InputError(
            f"{resolve_input(folder, 'prompts')}: parallel files must have the same number of prompts: {counts}"
        )
    _check_indices(list(records.values()))
    prompts = {code: [record.nonempty_text("Prompt") for record in lines] for code, lines in records.items()}
    if not repair_entities:
        return prompts
    return {code: [ENTITY.sub(_entity_character, text) for text in texts] for code, texts in prompts.items()}


def parallel_files(folder: str, languages: Sequence[str]) -> dict[str, Path]:
    """Return the file of each language, by its code.

    Raises:
        InputError: a language's file is missing.
    """
    source = resolve_input(folder, "prompts")
    released = {code: source / f"dpo_toxicity_pairwise_{known.short}_200.jsonl" for code, known in LANGUAGES.items()}
    files = rtp_lx_files(source) or released
    codes = [language(code).code for code in languages]
    for code in codes:
        if code not in files or not files[code].is_file():
            present = " ".join(known for known, file in files.items() if file.is_file()) or "none"
            name = files[code].name if code in files else f"RTP_LX_{LANGUAGES[code].rtp_lx}.json"
            raise InputError(f"{source / name}: no such file; languages present: {present}")
    return {code: files[code] for code in codes}


def parallel_fingerprint(folder: str, languages: Sequence[str]) -> str:
    """Return the SHA-256 of the languages' files.

    Raises:
        InputError: a language's file is missing.
    """
    return fingerprint({code: file_fingerprint(file) for code, file in parallel_files(folder, languages).items()})


def _check_indices(records: Sequence[Sequence[Record]]) -> None:
    for translations in zip(*records, strict=True):
        indexed = [record for record in translations if "Index" in record.fields]
        for record in indexed[1:]:
            index, first = record_index(record), record_index(indexed[0])
            if index != first:
                raise InputError(
                    f"{record.location}: Index {index}, but {first} in {indexed[0].location}; lines of the same "
                    "number must translate each other: sort the files by Index, and keep the prompts that all have"
                )


def _entity_character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])
