"""Read prompts: a folder of ``RTP_LX_{CODE}.json`` files, one JSON-lines file with a ``Prompt`` field, or an archive.

An archive is PolygloToxicityPrompts, in 17 languages, or RealToxicityPrompts, in English: a JSON-lines or Parquet file,
or a folder of them.

A prompt's id is ``{language}/{Index}``. ``Index`` is text in some files and a number in others; the prompts of a file
without it, and those of an archive within their language, are numbered from 0. Texts may repeat (the files of CS, DE,
IT and ZH-Hans repeat one text each), ids may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from xgray.config import Prompts
from xgray.data.archives.polyglo_toxicity_prompts import read_polyglo_prompts
from xgray.data.archives.real_toxicity_prompts import read_real_prompts
from xgray.data.archives.rows import first_row
from xgray.data.source import Record, check_language, plain_name, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.rows import Prompt
from xgray.storage.fingerprint import file_fingerprint, fingerprint

PromptReader = Callable[[Path], Iterator[tuple[str, str]]]
"""Yields the language and the text of each prompt in a file."""


def read_prompts(section: Prompts, languages: Sequence[str]) -> Iterator[Prompt]:
    """Yield the prompts of ``languages`` in their order and each file's, the first ``section.limit`` of each language.

    Raises:
        InputError: a language has no prompts, an id repeats, or a file or line is broken.
    """
    codes = [language(code).code for code in languages]
    files = prompt_files(section, languages)
    if read_archive := _archive_reader(files):
        yield from _read_archive(files, read_archive, codes, section.limit)
        return
    if not resolve_input(section.path, "prompts").is_dir():
        codes = [_single_file_language(files[0], codes)]
    for code, path in zip(codes, files, strict=True):
        yield from _read_file(path, code, section.limit)


def prompt_files(section: Prompts, languages: Sequence[str]) -> list[Path]:
    """Return the files that hold the prompts: one for each language in order, the single file, or an archive's files.

    Raises:
        InputError: a file is missing.
    """
    source = resolve_input(section.path, "prompts")
    if not source.is_dir():
        return [source]
    codes = [language(code).code for code in languages]
    files = rtp_lx_files(source)
    archive = sorted(file for pattern in ("*.jsonl", "*.parquet") for file in source.glob(pattern))
    if archive and not files:
        return archive
    for code in codes:
        if code not in files:
            raise InputError(
                f"{source / f'RTP_LX_{LANGUAGES[code].rtp_lx}.json'}: no such file, for the {code} prompts; languages "
                f"present: {' '.join(files) or 'none'}"
            )
    return [files[code] for code in codes]


def rtp_lx_files(folder: Path) -> dict[str, Path]:
    """Return the ``RTP_LX_{CODE}.json`` files of a folder by language; ``RTP_LX_PT-BR.json`` holds Portuguese too.

    Raises:
        InputError: two files are of one language.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("RTP_LX_*.json")):
        try:
            code = language(file.stem.removeprefix("RTP_LX_")).code
        except InputError:
            continue
        if code in found:
            raise InputError(f"{file}: {found[code].name} holds {code} prompts too; keep one of them in this folder")
        found[code] = file
    return {code: found[code] for code in LANGUAGES if code in found}


def prompts_fingerprint(section: Prompts, languages: Sequence[str]) -> str:
    """Return the SHA-256 of the prompts' files, their languages and the limit.

    Raises:
        InputError: a file is missing.
    """
    files = [file_fingerprint(path) for path in prompt_files(section, languages)]
    return fingerprint({"files": files, "languages": list(languages), "limit": section.limit})


def check_english(section: Prompts, languages: Sequence[str], stage: str) -> None:
    """Check that a stage which needs English prompts finds them.

    A single file without ``Locale`` fields is taken to be of the experiment's language, so if that is not English,
    reading the file would not show that its prompts are of another language.

    Raises:
        InputError: the prompts are a single file, and the experiment's only language is not English.
    """
    source = resolve_input(section.path, "prompts")
    if list(languages) != ["en"] and not source.is_dir() and not _archive_reader([source]):
        raise InputError(
            f"{stage} needs English prompts, and prompts.path is one file, {section.path}, of {' '.join(languages)} "
            "prompts. Make it a folder of RTP_LX_{CODE}.json files with RTP_LX_EN.json, or leave "
            f"{stage} out"
        )


def _archive_reader(files: Sequence[Path]) -> PromptReader | None:
    """Return what reads the files if they are of an archive, by the first row of the first."""
    if plain_name(files[0]).suffix not in (".jsonl", ".json", ".parquet"):
        return None
    row = first_row(files[0])
    if isinstance(row.get("prompt"), dict):
        return read_real_prompts
    if "prompt" in row and "meta_data" in row:
        return read_polyglo_prompts
    if files[0].suffix == ".parquet":
        raise InputError(
            f"{files[0]}: neither PolygloToxicityPrompts nor RealToxicityPrompts; columns found: {', '.join(row)}"
        )
    return None


def _read_archive(files: Sequence[Path], read: PromptReader, codes: list[str], limit: int | None) -> Iterator[Prompt]:
    """Yield an archive's prompts language by language. The texts are held meanwhile: files may mix the languages."""
    texts: dict[str, list[str]] = {code: [] for code in codes}
    present: set[str] = set()
    for code, text in chain.from_iterable(map(read, files)):
        present.add(code)
        if code in texts and (limit is None or len(texts[code]) < limit):
            texts[code].append(text)
            if limit and all(len(in_language) == limit for in_language in texts.values()):
                break
    if missing := [code for code in codes if not texts[code]]:
        raise InputError(
            f"{files[0]}: no prompts in {', '.join(missing)}; set languages to some of {' '.join(sorted(present))}"
        )
    for code, in_language in texts.items():
        for position, text in enumerate(in_language):
            yield Prompt(f"{code}/{position}", code, text)


def _read_file(path: Path, code: str, limit: int | None) -> Iterator[Prompt]:
    seen: set[int] = set()  # hashes: a million ids would take ten times the memory
    has_index = False
    for position, record in enumerate(islice(read_records(path), limit)):
        check_language(record.fields, record.location, code)
        if position == 0:
            has_index = "Index" in record.fields
        elif has_index != ("Index" in record.fields):
            raise InputError(f"{record.location}: either all prompts of a file have an Index or none")
        index = record_index(record) if has_index else str(position)
        if has_index and hash(index) in seen:
            _check_unique(path, index, record)
        seen.add(hash(index))
        yield Prompt(f"{code}/{index}", code, record.nonempty_text("Prompt"))


def _check_unique(path: Path, index: str, record: Record) -> None:
    """Raise an InputError if an earlier line has the same index, and not just the same hash."""
    for earlier in read_records(path):
        if earlier.location == record.location:
            return
        if record_index(earlier) == index:
            line = earlier.location.rpartition(":")[2]
            raise InputError(
                f"{record.location}: Index {index!r} is taken by line {line}; a prompt's id must be unique"
            )


def record_index(record: Record) -> str:
    """Return the ``Index`` of a line, which is a number in some files and text in others.

    Raises:
        InputError: it is neither.
    """
    index = record.fields["Index"]
    if isinstance(index, float) and index.is_integer():  # as pandas writes a column that once had a gap
        index = int(index)
    if isinstance(index, int) and not isinstance(index, bool):
        return str(index)
    if isinstance(index, str) and index.strip():
        return index.strip()
    raise InputError(f"{record.location}: Index must be a number or a text, not {index!r}")


def _single_file_language(path: Path, codes: list[str]) -> str:
    """Return the language of a single file: that of its ``Locale`` fields, or else the experiment's only language."""
    file_code: str | None = None
    for record in read_records(path):
        if not record.fields.get("Locale"):
            continue
        code = locale_language(record)
        if file_code not in (None, code):
            raise InputError(
                f"{record.location}: a {code} prompt in a file of {file_code} prompts; one file holds one language"
            )
        file_code = code
    if file_code is None and len(codes) > 1:
        raise InputError(f"{path}: no Locale field names the language; set languages to the one of this file")
    if file_code is not None and codes != [file_code]:
        raise InputError(
            f"{path}: holds {file_code} prompts only, not {' '.join(codes)}; set languages to [{file_code}]"
        )
    return codes[0]


def locale_language(record: Record) -> str:
    """Return the language that the ``Locale`` of a line names.

    Raises:
        InputError: it names none of the 17 languages.
    """
    try:
        return language(record.text("Locale")).code
    except InputError as error:
        raise InputError(f"{record.location}: Locale: {error}") from None
