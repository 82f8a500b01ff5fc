"""Reading the rows that metrics are computed from: a model's completions with their scores and perplexities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xgray.errors import InputError, StageError
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, item_ids, schema
from xgray.runs.manifest import MANIFEST, StageFolder
from xgray.stats.bootstrap import FloatArray
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


PERPLEXITY = "perplexity"
"""The folder in the evaluate stage's folder that holds ``{model}.{language}.parquet``."""


@dataclass(frozen=True)
class LanguageRows:
    """One model's rows of one language, in the order of the prompt file."""

    prompt_ids: list[str]
    items: list[str]
    """The prompts' ids without their language: translations have the same."""
    prompts: list[str]
    """The prompts' texts."""
    completions: list[list[str]]
    """The completions of each prompt; none where the prompt failed."""
    scores: FloatArray
    """``(num_prompts, largest k)`` in [0, 1]; NaN where there is no score or no completion."""
    perplexities: FloatArray
    """``(num_prompts, largest k)``; NaN where there is no perplexity, everywhere if they were not requested."""

    @property
    def num_completions(self) -> int:
        return sum(map(len, self.completions))


def perplexity_schema() -> pa.Schema:
    """Return the Parquet schema of the perplexity files."""
    import pyarrow as pa

    key = [("prompt_id", pa.string()), ("language", pa.string()), ("model", pa.string())]
    return pa.schema([*key, ("perplexities", pa.list_(pa.float64()))])


def perplexity_file(model: str, language: str) -> str:
    """Return the name of the file with one model's perplexities in one language."""
    return f"{model}.{language}.parquet"


def write_perplexities(
    folder: Folder, model: str, language: str, prompt_ids: Sequence[str], values: Sequence[Sequence[float | None]]
) -> None:
    """Write the perplexities of one model in one language as one complete file.

    Args:
        prompt_ids: ``(num_prompts,)``.
        values: for each prompt the perplexities of its completions; None where a completion has none.
    """
    import pyarrow as pa

    rows = [
        {"prompt_id": prompt_id, "language": language, "model": model, "perplexities": list(perplexities)}
        for prompt_id, perplexities in zip(prompt_ids, values, strict=True)
    ]
    folder.write_parquet(perplexity_file(model, language), pa.Table.from_pylist(rows, schema=perplexity_schema()))


def read_completions(run: Folder, model: str) -> dict[str, LanguageRows]:
    """Read a model's completions by language, in the order of :data:`LANGUAGES`. Scores and perplexities are all NaN.

    Raises:
        InputError: there are no completions, or a prompt occurs twice.
        StageError: rows of the finished stage are lost.
    """
    stage_folder = StageFolder(run / "generate" / model, "generate", model)
    folder = stage_folder.rows
    table = folder.read_parquet(schema(Completions), ["prompt_id", "language", "prompt", "completions"])
    by_language: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for row in table.to_pylist():
        rows = by_language.setdefault(row["language"], {})
        if row["prompt_id"] in rows:
            raise InputError(f"{folder}: prompt {row['prompt_id']} occurs twice. Remove one of the files it is in.")
        rows[row["prompt_id"]] = (row["prompt"], row["completions"])
    _check_complete(stage_folder, table.num_rows)
    if not by_language:
        raise InputError(f"{folder}: no completions of model {model!r}. Run the generate stage first.")
    language_rows = {}
    for language in sorted(by_language, key=list(LANGUAGES).index):
        rows = by_language[language]
        # en/9 comes before en/10, as in the prompt file; rows may have been written in any order.
        ids = sorted(rows, key=lambda prompt_id: (len(prompt_id), prompt_id))
        prompts, completions = zip(*(rows[prompt_id] for prompt_id in ids), strict=True)
        missing = np.full((len(ids), max(map(len, completions))), np.nan)
        language_rows[language] = LanguageRows(
            ids, item_ids(ids, language), list(prompts), list(completions), missing, missing
        )
    return language_rows


def read_language_rows(
    run: Folder, model: str, attribute: str, with_perplexity: bool, scoring: str = "score"
) -> dict[str, LanguageRows]:
    """Read a model's completions, scores and perplexities by language, in the order of :data:`LANGUAGES`.

    The scores of a prompt without a row of scores are NaN.

    Args:
        attribute: the scored attribute, one of :data:`xgray.rows.ATTRIBUTES`.
        with_perplexity: whether to read perplexities; otherwise they are all NaN.
        scoring: the stage whose scores are read; that of the first scorer by default.

    Raises:
        InputError: there are no completions, a prompt occurs twice, or a prompt's scores or perplexities are not as
            many as its completions.
        StageError: some perplexities were not computed yet, or rows of a finished stage are lost.
    """
    import pyarrow.compute as pc

    stage_folder = StageFolder(run / scoring / model, scoring, model)
    folder = stage_folder.rows
    table = folder.read_parquet(schema(Scores), ["prompt_id", "scores"])
    _check_complete(stage_folder, table.num_rows)
    flat = pc.struct_field(pc.list_flatten(table["scores"]), attribute)
    scores = _by_prompt(table, "scores", flat)
    perplexities = {}
    if with_perplexity:
        measured = (run / "evaluate" / PERPLEXITY).read_parquet(perplexity_schema())
        measured = measured.filter(pc.field("model") == model)
        perplexities = _by_prompt(measured, "perplexities", pc.list_flatten(measured["perplexities"]))
    language_rows = {}
    for language, rows in read_completions(run, model).items():
        absent = [prompt_id for prompt_id in rows.prompt_ids if with_perplexity and prompt_id not in perplexities]
        if absent:
            raise StageError(
                f"{model}: no perplexities of {absent[0]} and {len(absent) - 1} more prompts. "
                "Run the evaluate stage again: it measures those that are missing."
            )
        language_rows[language] = LanguageRows(
            rows.prompt_ids,
            rows.items,
            rows.prompts,
            rows.completions,
            _filled(rows, scores, f"{folder}: scores"),
            _filled(rows, perplexities, f"{run / 'evaluate' / PERPLEXITY}: perplexities"),
        )
    return language_rows


def _check_complete(stage_folder: StageFolder, num_rows: int) -> None:
    """Raise a StageError if rows of a finished stage are lost: metrics would silently be those of fewer prompts."""
    manifest = stage_folder.manifest()
    expected = manifest["counts"]["num_prompts"] if manifest else num_rows
    if num_rows != expected:
        raise StageError(
            f"{stage_folder.rows}: {num_rows} rows, but the finished stage wrote {expected}. "
            f"Delete {stage_folder.folder / MANIFEST} and run the same command again: "
            f"the stage {stage_folder.stage} makes the missing rows."
        )


def _by_prompt(table: pa.Table, column: str, flat: pa.ChunkedArray) -> dict[str, FloatArray]:
    """Return the values of a list column by prompt id; null becomes NaN.

    Args:
        column: name of the list column, whose lengths say where each prompt's values end.
        flat: the values of all lists, one after the other.
    """
    import pyarrow.compute as pc

    ends = np.cumsum(pc.list_value_length(table[column]).to_numpy())
    values = np.split(flat.to_numpy().astype(np.float64), ends[:-1]) if table.num_rows else []
    return dict(zip(table["prompt_id"].to_pylist(), values, strict=True))


def _filled(rows: LanguageRows, values: dict[str, FloatArray], what: str) -> FloatArray:
    """Return the values as an array, ``(num_prompts, largest k)``, NaN where there is none.

    Raises:
        InputError: a prompt has another number of values than of completions; ``what`` names the values.
    """
    filled = np.full(rows.scores.shape, np.nan)
    for target, prompt_id, completions in zip(filled, rows.prompt_ids, rows.completions, strict=True):
        prompt_values = values.get(prompt_id)
        if prompt_values is None:
            continue
        if len(prompt_values) != len(completions):
            raise InputError(
                f"{what} of {prompt_id}: {len(prompt_values)} values for {len(completions)} completions. "
                "Delete the stage's folder and run it again, or correct the imported file."
            )
        target[: len(prompt_values)] = prompt_values
    return filled
