"""Completions that exist already: ``output-rtp_lx_{lang}.json`` files of the paper's scripts, or our own Parquet.

The scripts' files are JSON lines of ``prompt`` and ``generated_text``, k consecutive lines for each prompt, without
any id: a prompt gets its position in the file, ``{language}/{position}``. They are opened for appending, so a second
run doubles the file; and a prompt whose text repeats would merge with its double if lines were grouped by text. Both
are told apart here by where the lines stand.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from xgray.data.source import Record, read_records, resolve_input
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language
from xgray.rows import Completions, from_table, schema

log = logging.getLogger(__name__)

FINISH_REASON = "imported"


def read_generations(path: str, model: str, language: str | None = None, k: int | None = None) -> list[Completions]:
    """The completions of one file, or of all ``output-*.json`` (or all ``*.parquet``) files of a folder.

    Args:
        model: the model's name in this experiment, whatever a Parquet file calls it.
        language: of a JSON-lines file whose name does not end in it; files of a folder are named.
        k: completions of each prompt; by default what the file shows.

    Raises:
        InputError: a file, line or row is broken; a prompt has not k completions, or the file does not show k; a second
            run was appended; two rows have the same id, or there are none.
    """
    source = resolve_input(path, "generations")
    files = list_files(source, "*.parquet") or list_files(source, "output-*.json")
    if not files:
        raise InputError(f"{source}: the folder holds neither output-*.json nor *.parquet files")
    rows: list[Completions] = []
    for file in files:
        rows += _parquet(file, model) if file.suffix == ".parquet" else _json_lines(file, model, language, k)
    check_completions(source, rows, k)
    return rows


def list_files(source: Path, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder that match ``pattern``, sorted."""
    return sorted(source.glob(pattern)) if source.is_dir() else [source]


def file_language(path: Path, given: str | None) -> str:
    """The language at the end of the file's name, ``output-rtp_lx_zh-hans.json``; where there is none, the one given.

    Raises:
        InputError: it is none of the 17.
    """
    code = path.stem.rpartition("_")[2]
    try:
        return language(code).code
    except InputError:
        if given is not None:
            return language(given).code
        raise InputError(
            f"{path}: the name must end in a language, as in output-rtp_lx_en.json, or the language be given "
            f"(--languages CODE; xgray scores import: --language CODE); {code!r} is none of {' '.join(LANGUAGES)}"
        ) from None


def group_by_prompt(lines: Sequence[Record], k: int | None) -> list[list[Record]]:
    """The lines of each prompt, in order: k consecutive lines with the same ``prompt``.

    Without ``k``, it is the most frequent length of a run of equal prompts. A run of n times k lines is a prompt that
    repeats n times in a row.

    Raises:
        InputError: a run is no multiple of k, two lengths are the most frequent, or the prompts start over.
    """
    runs = [list(run) for _, run in groupby(lines, key=lambda record: record.text("prompt"))]
    _check_once(runs)
    if k is None:
        k = _shown(runs)
    for run in runs:
        if len(run) % k:
            raise InputError(
                f"{run[0].location}: {len(run)} lines in a row have this prompt, which is no multiple of k = {k}; "
                "the file was cut off or mixed, or k is another: make it whole, or give k (--generate.k K)"
            )
    blocks = [run[start : start + k] for run in runs for start in range(0, len(run), k)]
    num_repeated = len(blocks) - len({block[0].fields["prompt"] for block in blocks})
    if num_repeated:
        file = lines[0].location.rpartition(":")[0]
        log.warning("%s: %d prompts repeat an earlier one's text; each stays a prompt of its own", file, num_repeated)
    return blocks


def _shown(runs: list[list[Record]]) -> int:
    """k as the runs of equal prompts show it."""
    lengths = Counter(len(run) for run in runs)
    most = max(lengths.values())
    k, *others = sorted(length for length in lengths if lengths[length] == most)
    if others:
        first, other = (next(run for run in runs if len(run) == length) for length in (k, others[0]))
        raise InputError(
            f"{other[0].location}: {others[0]} lines in a row have this prompt, and {k} that of line "
            f"{first[0].location.rpartition(':')[2]}: the file does not show how many completions a prompt has; "
            "it was cut off, or a prompt repeats: make it whole, or give k (--generate.k K)"
        )
    return k


def _check_once(runs: list[list[Record]]) -> None:
    """Refuse a file whose prompts start over: one repeated prompt is RTP-LX's own, the first two in order are not."""
    texts = [run[0].fields["prompt"] for run in runs]
    for position in range(1, len(texts) - 1):
        if texts[position : position + 2] == texts[:2]:
            again = runs[position][0].location
            raise InputError(
                f"{again}: the prompts start over, as when a second run is appended to the first; "
                f"keep one of them: the first ends at line {int(again.rpartition(':')[2]) - 1}"
            )


def check_completions(source: Path, rows: list[Completions], k: int | None) -> None:
    """Raise unless there are rows, every id is there once, and all have the same number of completions."""
    if not rows:
        raise InputError(f"{source}: no completions; the table has no rows")
    for prompt_id, num in Counter(row.prompt_id for row in rows).items():
        if num > 1:
            raise InputError(f"{source}: prompt {prompt_id!r} is there {num} times; keep one of its rows")
    wanted = k or len(rows[0].completions)
    for row in rows:
        if len(row.completions) != wanted:
            raise InputError(f"{source}: prompt {row.prompt_id!r} has {len(row.completions)} completions, not {wanted}")


def _json_lines(path: Path, model: str, given: str | None, k: int | None) -> list[Completions]:
    code = file_language(path, given)
    return [
        Completions(
            prompt_id=f"{code}/{position}",
            language=code,
            model=model,
            prompt=block[0].text("prompt"),
            completions=[record.text("generated_text") for record in block],
            token_counts=[],
            finish_reasons=[FINISH_REASON] * len(block),
        )
        for position, block in enumerate(group_by_prompt(list(read_records(path)), k))
    ]


def _parquet(path: Path, model: str) -> list[Completions]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = schema(Completions)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: no readable Parquet file: {str(error).splitlines()[0]}") from None
    if "error" not in table.column_names:
        table = table.append_column("error", pa.nulls(table.num_rows, pa.string()))
    missing = [name for name in wanted.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; completions have {', '.join(wanted.names)}")
    try:
        rows = from_table(table.select(wanted.names).cast(wanted), Completions)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: a column has the wrong type: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in (row.prompt_id, row.language, row.model, row.prompt, row.completions, *(row.completions or ())):
            raise InputError(f"{path}: row {number} lacks prompt_id, language, model, prompt or one of its completions")
    models = sorted({row.model for row in rows})
    if len(models) > 1:
        raise InputError(f"{path}: rows of several models ({', '.join(models)}); give the file of one model")
    return [replace(row, model=model) for row in rows]
