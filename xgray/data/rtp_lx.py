"""RTP-LX prompts: a folder of ``RTP_LX_{CODE}.json`` files, or one JSON-lines file with a ``Prompt`` field.

A prompt's id is ``{language}/{Index}``. ``Index`` is text in some files and a number in others; a file without it
numbers its prompts from 0. Texts may repeat (the files of CS, DE, IT and ZH-Hans hold one repeated text each), ids
may not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from xgray.config import Prompts
from xgray.data.source import Record, located, records
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.rows import Prompt


def read_prompts(section: Prompts, languages: Sequence[str]) -> list[Prompt]:
    """The prompts of ``languages``, in their order and each file's; the first ``section.limit`` of each language.

    Raises:
        InputError: a language has no prompts there, an id repeats, or a file or line is broken.
    """
    codes = [language(code).code for code in languages]
    source = located(section.path, "prompts")
    if not source.is_dir():
        return _prompts(source, _language_of(source, codes), section.limit)
    files = {code: source / f"RTP_LX_{known.rtp_lx}.json" for code, known in LANGUAGES.items()}
    present = [code for code, file in files.items() if file.is_file()]
    for code in codes:
        if code not in present:
            there = " ".join(present) or "none"
            raise InputError(f"{files[code]}: no such file, for the {code} prompts; languages present: {there}")
    return [prompt for code in codes for prompt in _prompts(files[code], code, section.limit)]


def _prompts(path: Path, code: str, limit: int | None) -> list[Prompt]:
    prompts = []
    seen: dict[str, Record] = {}
    numbered = False
    for position, record in enumerate(islice(records(path), limit)):
        if position == 0:
            numbered = "Index" in record.fields
        elif numbered != ("Index" in record.fields):
            raise InputError(f"{record.where}: either all prompts of a file have an Index or none")
        index = _index(record) if numbered else str(position)
        if index in seen:
            first = seen[index].where.rpartition(":")[2]
            raise InputError(f"{record.where}: Index {index!r} is taken by line {first}; a prompt's id must be unique")
        seen[index] = record
        prompts.append(Prompt(f"{code}/{index}", code, record.filled("Prompt")))
    return prompts


def _index(record: Record) -> str:
    index = record.fields["Index"]
    if isinstance(index, int) and not isinstance(index, bool):
        return str(index)
    if isinstance(index, str) and index.strip():
        return index.strip()
    raise InputError(f"{record.where}: Index must be a number or a text, not {index!r}")


def _language_of(path: Path, codes: list[str]) -> str:
    """The language of a single file: what its ``Locale`` fields say, else the one language asked for."""
    held: str | None = None
    for record in records(path):
        if not record.fields.get("Locale"):
            continue
        code = _locale_language(record)
        if held not in (None, code):
            raise InputError(
                f"{record.where}: a {code} prompt in a file of {held} prompts; one file holds one language"
            )
        held = code
    if held is None and len(codes) > 1:
        raise InputError(f"{path}: no Locale field tells the language; set languages to the one of this file")
    if held is not None and codes != [held]:
        raise InputError(f"{path}: holds {held} prompts only, not {' '.join(codes)}; set languages to [{held}]")
    return codes[0]


def _locale_language(record: Record) -> str:
    locale = record.text("Locale")
    # Regional spellings as in the Portuguese file ("Pt-Br"); those of Chinese differ in script and do not pass.
    region = re.fullmatch(r"(?!zh)([a-z]{2})[-_][a-z]{2}", locale.lower())
    try:
        return language(region[1] if region else locale).code
    except InputError as error:
        raise InputError(f"{record.where}: Locale: {error}") from None
