"""RTP-LX prompts: a folder of ``RTP_LX_{CODE}.json`` files, or one JSON-lines file with a ``Prompt`` field.

A prompt's id is ``{language}/{Index}``. ``Index`` is text in some files and a number in others; a file without it
numbers its prompts from 0. Texts may repeat (the files of CS, DE, IT and ZH-Hans hold one repeated text each), ids
may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from xgray.config import Prompts
from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.rows import Prompt
from xgray.storage.fingerprint import file_fingerprint, fingerprint


def read_prompts(section: Prompts, languages: Sequence[str]) -> Iterator[Prompt]:
    """The prompts of ``languages``, in their order and each file's; the first ``section.limit`` of each language.

    Raises:
        InputError: a language has no prompts there, an id repeats, or a file or line is broken.
    """
    codes = [language(code).code for code in languages]
    files = prompt_files(section, languages)
    if not resolve_input(section.path, "prompts").is_dir():
        codes = [_language_of(files[0], codes)]
    for code, path in zip(codes, files, strict=True):
        yield from _prompts(path, code, section.limit)


def prompt_files(section: Prompts, languages: Sequence[str]) -> list[Path]:
    """The files that hold the prompts: one for each language in order, or a single one for the one language.

    Raises:
        InputError: one of them is missing.
    """
    source = resolve_input(section.path, "prompts")
    if not source.is_dir():
        return [source]
    codes = [language(code).code for code in languages]
    files = {code: source / f"RTP_LX_{known.rtp_lx}.json" for code, known in LANGUAGES.items()}
    present = [code for code, file in files.items() if file.is_file()]
    for code in codes:
        if code not in present:
            there = " ".join(present) or "none"
            raise InputError(f"{files[code]}: no such file, for the {code} prompts; languages present: {there}")
    return [files[code] for code in codes]


def prompts_fingerprint(section: Prompts, languages: Sequence[str]) -> str:
    """What identifies the prompts: the files, their languages and the limit.

    Raises:
        InputError: a file is missing.
    """
    files = [file_fingerprint(path) for path in prompt_files(section, languages)]
    return fingerprint({"files": files, "languages": list(languages), "limit": section.limit})


def check_english(section: Prompts, languages: Sequence[str], wanted_by: str) -> None:
    """Refuse English prompts of a single file that the experiment's languages do not call English.

    Without ``Locale`` fields such a file is of whatever language it is read as, so that reading it would not tell.

    Raises:
        InputError: the prompts are a single file, and ``languages`` are not just English.
    """
    if list(languages) != ["en"] and not resolve_input(section.path, "prompts").is_dir():
        raise InputError(
            f"{wanted_by} wants English prompts, and prompts.path is one file, {section.path}, of "
            f"{' '.join(languages)} prompts; make it a folder of RTP_LX_{{CODE}}.json files with RTP_LX_EN.json, "
            f"or leave {wanted_by} out"
        )


def _prompts(path: Path, code: str, limit: int | None) -> Iterator[Prompt]:
    seen: set[int] = set()  # hashes: a million ids would take ten times the room
    numbered = False
    for position, record in enumerate(islice(read_records(path), limit)):
        if position == 0:
            numbered = "Index" in record.fields
        elif numbered != ("Index" in record.fields):
            raise InputError(f"{record.location}: either all prompts of a file have an Index or none")
        index = _index(record) if numbered else str(position)
        if numbered and hash(index) in seen:
            _check_taken(path, index, record)
        seen.add(hash(index))
        yield Prompt(f"{code}/{index}", code, record.nonempty_text("Prompt"))


def _check_taken(path: Path, index: str, record: Record) -> None:
    """Raise where a line before this one has its index, and not just the same hash."""
    for earlier in read_records(path):
        if earlier.location == record.location:
            return
        if _index(earlier) == index:
            first = earlier.location.rpartition(":")[2]
            raise InputError(
                f"{record.location}: Index {index!r} is taken by line {first}; a prompt's id must be unique"
            )


def _index(record: Record) -> str:
    index = record.fields["Index"]
    if isinstance(index, int) and not isinstance(index, bool):
        return str(index)
    if isinstance(index, str) and index.strip():
        return index.strip()
    raise InputError(f"{record.location}: Index must be a number or a text, not {index!r}")


def _language_of(path: Path, codes: list[str]) -> str:
    """The language of a single file: what its ``Locale`` fields say, else the one language asked for."""
    held: str | None = None
    for record in read_records(path):
        if not record.fields.get("Locale"):
            continue
        code = _locale_language(record)
        if held not in (None, code):
            raise InputError(
                f"{record.location}: a {code} prompt in a file of {held} prompts; one file holds one language"
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
        raise InputError(f"{record.location}: Locale: {error}") from None
