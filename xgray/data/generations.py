"""Read completions that exist already: ``output-rtp_lx_{lang}.json`` files of the paper's scripts, or Parquet of a run.

The scripts' files are JSON lines of ``prompt`` and ``generated_text``: k consecutive lines for each prompt. A prompt's
id is ``{language}/{Index}`` if the lines have RTP-LX's ``Index``, which translations share, and else its position in
the file, ``{language}/{position}``; :func:`with_indices` looks the index up. Two properties of these files decide how
lines are grouped here, by position rather than by text:

- the scripts open them for appending, so a second run doubles the file, which is refused;
- a prompt's text may repeat, and each repetition is a prompt.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from xgray.config import Prompts
from xgray.config.sampling import FullText
from xgray.data.prompts import read_prompts, record_index
from xgray.data.source import Record, check_language, folder_language, plain_name, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.rows import Completions, from_table, item_ids, schema

log = logging.getLogger(__name__)

FINISH_REASON = "imported"


MIN_PROMPT_LENGTH = 8
"""Characters of the shortest prompt that shows whether completions begin with their prompt: any may begin with "I"."""


def read_generations(
    path: str, model: str, language: str | None = None, k: int | None = None, full_text: FullText = "refuse"
) -> list[Completions]:
    """Return the completions of one file, or of all ``output-*.json`` (or all ``*.parquet``) files of a folder.

    Args:
        model: The model's name in this experiment; it replaces the name in a Parquet file.
        language: The language of JSON-lines files whose names do not end in one.
        k: Completions per prompt; by default what the file shows.
        full_text: What becomes of completions that begin with their prompt.

    Raises:
        InputError: a file, line or row is broken; a prompt does not have k completions, or the file does not show k; a
            second run was appended; two rows have the same id, or there are no rows; or completions begin with their
            prompt, and ``full_text`` does not say what becomes of it.
    """
    source = resolve_input(path, "generations")
    files = list_files(source, "*.parquet") or list_files(source, "output-*.json")
    if not files:
        raise InputError(f"{source}: the folder holds neither output-*.json nor *.parquet files")
    rows: list[Completions] = []
    for file in files:
        if file.suffix == ".parquet":
            rows += _read_parquet(file, model)
        else:
            rows += _read_json_lines(file, model, language, k)
    check_completions(source, rows, k)
    if full_text == "cut":
        return [_without_prompt(row, source) for row in rows]
    if full_text == "refuse":
        refuse_full_text(source, rows, "cut it off: --generate.full-text cut")
    return rows


def refuse_full_text(source: Path, rows: Sequence[Completions], remedy: str) -> None:
    """Refuse completions most of which begin with their prompt, so that a score would be of both.

    Raises:
        InputError: they do; ``remedy`` is what the user can do about it.
    """
    begins = [
        text.lstrip().startswith(row.prompt.strip())
        for row in rows
        if len(row.prompt.strip()) >= MIN_PROMPT_LENGTH
        for text in row.completions
    ]
    if sum(begins) * 2 > len(begins):
        raise InputError(
            f"{source}: {sum(begins)} of {len(begins)} completions begin with their prompt, as transformers' "
            f"return_full_text leaves them, and would be scored with it; {remedy}, or keep it as part of the "
            "completions: --generate.full-text keep"
        )


def _without_prompt(row: Completions, source: Path) -> Completions:
    """Return a prompt's completions without the prompt at their beginning."""
    prompt, completions = row.prompt.strip(), []
    for text in row.completions:
        if not text.lstrip().startswith(prompt):
            raise InputError(
                f"{source}: a completion of prompt {row.prompt_id!r} does not begin with the prompt, so that "
                "--generate.full-text cut cannot cut it off; correct the file, or leave the option out"
            )
        # White space at the prompt's end belongs to the prompt, at the completion's beginning to the completion.
        rest = text.lstrip()[len(prompt) :]
        completions.append(rest.removeprefix(row.prompt[len(row.prompt.rstrip()) :]))
    return replace(row, completions=completions)


def list_files(source: Path, pattern: str) -> list[Path]:
    """Return a file itself, or the files of a folder, or of its folders ``lang=en``, that match, sorted."""
    if not source.is_dir():
        return [source]
    return sorted(source.glob(pattern)) or sorted(source.glob(f"*=*/{pattern}"))


def file_language(path: Path, default: str | None) -> str:
    """Return the language of the file's name, ``output-rtp_lx_de.json``, or of its folder, ``lang=de``, or ``default``.

    Raises:
        InputError: the name does not end in one of the 17 languages, and ``default`` is not one of them either.
    """
    code = folder_language(path) or plain_name(path).stem.rpartition("_")[2]
    try:
        return language(code).code
    except InputError:
        if default is not None:
            return language(default).code
        raise InputError(
            f"{path}: the name must end in a language, as in output-rtp_lx_en.json; {code!r} is none of "
            f"{' '.join(LANGUAGES)}. Give the language as --languages CODE (xgray scores import: --language CODE)"
        ) from None


def group_by_prompt(lines: Sequence[Record], k: int | None) -> list[list[Record]]:
    """Return the lines of each prompt, in order: k consecutive lines with the same ``prompt``.

    A series of n times k equal lines is a prompt that repeats n times in succession. Where k is given, a file may also
    have the first samples of all prompts, then their second samples, and so on.

    Args:
        k: Completions per prompt; by default the most frequent length of a series of equal prompts.

    Raises:
        InputError: the length of a series is not a multiple of k, two lengths are the most frequent, or the prompts
            start over.
    """
    if k is not None and (num_prompts := _num_prompts_by_sample(lines)) and len(lines) == k * num_prompts:
        return [list(lines[first::num_prompts]) for first in range(num_prompts)]
    series = [list(equal) for _, equal in groupby(lines, key=lambda record: record.text("prompt"))]
    _refuse_second_run(series)
    if k is None:
        k = _most_frequent_length(series)
    for equal in series:
        if len(equal) % k:
            raise InputError(
                f"{equal[0].location}: {len(equal)} lines in a row have this prompt, which is no multiple of k = {k}. "
                "The file was cut off or mixed, or k is another: complete the file, or give k (--generate.k K)"
            )
    blocks = [equal[start : start + k] for equal in series for start in range(0, len(equal), k)]
    num_repeated = len(blocks) - len({block[0].fields["prompt"] for block in blocks})
    if num_repeated:
        file = lines[0].location.rpartition(":")[0]
        log.warning("%s: %d prompts repeat the text of an earlier prompt; each counts as a prompt", file, num_repeated)
    return blocks


def _num_prompts_by_sample(lines: Sequence[Record]) -> int | None:
    """Return the number of prompts of a file that lists all prompts once for each sample, None of another file."""
    prompts = [record.text("prompt") for record in lines]
    again = next((at for at in range(1, len(prompts)) if prompts[at : at + 2] == prompts[:2]), None)
    if again is None or len(prompts) % again or prompts != prompts[:again] * (len(prompts) // again):
        return None
    lengths = Counter(len(list(equal)) for _, equal in groupby(prompts[:again]))
    return again if max(lengths, key=lengths.__getitem__) == 1 else None


def _most_frequent_length(series: list[list[Record]]) -> int:
    lengths = Counter(len(equal) for equal in series)
    highest = max(lengths.values())
    k, *others = sorted(length for length in lengths if lengths[length] == highest)
    if others:
        first, other = (next(equal for equal in series if len(equal) == length) for length in (k, others[0]))
        raise InputError(
            f"{other[0].location}: {others[0]} lines in a row have this prompt, and {k} that of line "
            f"{first[0].location.rpartition(':')[2]}, so the file does not show how many completions a prompt has. "
            "It was cut off, or a prompt repeats: complete the file, or give k (--generate.k K)"
        )
    return k


def _refuse_second_run(series: list[list[Record]]) -> None:
    """Refuse a file in which the prompts start over: RTP-LX repeats single prompts, never the first two in order."""
    texts = [equal[0].fields["prompt"] for equal in series]
    for position in range(1, len(texts) - 1):
        if texts[position : position + 2] == texts[:2]:
            second_run = series[position][0].location
            by_sample = ""
            lines = [record for equal in series for record in equal]
            if num_prompts := _num_prompts_by_sample(lines):
                k = len(lines) // num_prompts
                by_sample = f" If each time is another sample of the same {num_prompts} prompts: --generate.k {k}"
            raise InputError(
                f"{second_run}: the prompts start over, as when a second run is appended to the first. "
                f"Keep one of the two runs: the first ends at line {int(second_run.rpartition(':')[2]) - 1}.{by_sample}"
            )


def block_ids(blocks: Sequence[Sequence[Record]], code: str) -> list[str]:
    """Return the ids of the prompts of a file: ``{language}/{Index}``, or the position where no line has an index.

    Raises:
        InputError: some prompts have an index and others none, or lines of one prompt differ in it.
    """
    with_index = [block for block in blocks if "Index" in block[0].fields]
    if not with_index:
        return [f"{code}/{position}" for position in range(len(blocks))]
    ids = []
    for block in blocks:
        indices = {record_index(record) if "Index" in record.fields else None for record in block}
        if len(indices) > 1 or None in indices:
            raise InputError(
                f"{block[0].location}: either all lines of a file have an Index or none, and the lines of one prompt "
                "the same one; correct the file, or remove the field"
            )
        ids.append(f"{code}/{indices.pop()}")
    return ids


def with_indices(rows: Sequence[Completions], prompts: Prompts) -> dict[str, str]:
    """Return the id of each imported row's prompt in a file of prompts with an index, by its present id.

    Prompts are found by their text. Where a text repeats, its repetitions have the ids in the order of the file.

    Args:
        rows: rows from Parquet that were sampled have ids of their own, and keep them.
        prompts: where the prompts are that the completions continue.

    Raises:
        InputError: there is no such prompt, or no such file.
    """
    imported = [row for row in rows if row.finish_reasons and set(row.finish_reasons) == {FINISH_REASON}]
    found: dict[str, str] = {}
    for code in dict.fromkeys(row.language for row in imported):
        ids: dict[str, list[str]] = {}
        for prompt in read_prompts(prompts, [code]):
            ids.setdefault(prompt.text, []).append(prompt.prompt_id)
        for row in imported:
            if row.language != code:
                continue
            if not ids.get(row.prompt):
                raise InputError(
                    f"{row.prompt_id}: the prompt {row.prompt[:40]!r} is not, or not as often, in {prompts.path}, "
                    "where --prompts.path says the prompts are. Name the folder with the prompts that were continued, "
                    "or leave the option out"
                )
            found[row.prompt_id] = ids[row.prompt].pop(0)
    return found


def translations_are_unknown(rows: Sequence[Completions]) -> bool:
    """Whether there are several languages whose prompts all have their position as index."""
    by_language: dict[str, list[str]] = {}
    for row in rows:
        by_language.setdefault(row.language, []).append(row.prompt_id)
    return len(by_language) > 1 and all(
        item_ids(ids, code) == [str(position) for position in range(len(ids))] for code, ids in by_language.items()
    )


def check_completions(source: Path, rows: list[Completions], k: int | None) -> None:
    """Check that there are rows, that ids are unique and that all prompts have the same number of completions.

    Args:
        source: The file or folder of the rows, for messages.
        k: The number of completions; by default that of the first row.

    Raises:
        InputError: there are no rows, an id repeats, or a prompt has another number of completions.
    """
    if not rows:
        raise InputError(f"{source}: no completions; the table has no rows")
    for prompt_id, num_rows in Counter(row.prompt_id for row in rows).items():
        if num_rows > 1:
            raise InputError(f"{source}: prompt {prompt_id!r} has {num_rows} rows; keep one of them")
    num_expected = k or len(rows[0].completions)
    for row in rows:
        if len(row.completions) != num_expected:
            raise InputError(
                f"{source}: prompt {row.prompt_id!r} has {len(row.completions)} completions, not {num_expected}"
            )


def _read_json_lines(path: Path, model: str, default_language: str | None, k: int | None) -> list[Completions]:
    code = file_language(path, default_language)
    records = list(read_records(path))
    check_rows(records, code)
    blocks = group_by_prompt(records, k)
    return [
        Completions(
            prompt_id=prompt_id,
            language=code,
            model=model,
            prompt=block[0].text("prompt"),
            completions=[record.text("generated_text") for record in block],
            token_counts=[],
            finish_reasons=[FINISH_REASON] * len(block),
        )
        for prompt_id, block in zip(block_ids(blocks, code), blocks, strict=True)
    ]


def check_rows(records: Sequence[Record], code: str) -> None:
    """Check that lines which say a language or a model are of one model, and of the language ``code``.

    Raises:
        InputError: one is of another.
    """
    first: Record | None = None
    for record in records:
        check_language(record.fields, record.location, code)
        if "model" not in record.fields:
            continue
        first = first or record
        if record.fields["model"] != first.fields["model"]:
            raise InputError(
                f"{record.location}: model is {record.fields['model']!r}, and {first.fields['model']!r} on "
                f"{first.location}; give the file of one model"
            )


def _read_parquet(path: Path, model: str) -> list[Completions]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = schema(Completions)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: no readable Parquet file: {str(error).splitlines()[0]}") from None
    if "language" not in table.column_names and (stated := folder_language(path)):
        table = table.append_column("language", pa.repeat(language(stated).code, table.num_rows))
    if "error" not in table.column_names:
        table = table.append_column("error", pa.nulls(table.num_rows, pa.string()))
    missing = [name for name in expected.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; completions have {', '.join(expected.names)}")
    try:
        rows = from_table(table.select(expected.names).cast(expected), Completions)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: a column has the wrong type: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in (row.prompt_id, row.language, row.model, row.prompt, row.completions, *(row.completions or ())):
            raise InputError(f"{path}: row {number} lacks prompt_id, language, model, prompt or one of its completions")
    models = sorted({row.model for row in rows})
    if len(models) > 1:
        raise InputError(f"{path}: rows of several models ({', '.join(models)}); give the file of one model")
    return [replace(row, model=model) for row in rows]
