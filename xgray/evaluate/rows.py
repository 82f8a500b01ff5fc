"""The rows that metrics are made from: one model's completions in one language, with their scores and perplexities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xgray.errors import InputError, StageError
from xgray.languages import LANGUAGES
from xgray.rows import Completions, Scores, schema
from xgray.runs.manifest import MANIFEST, StageFolder
from xgray.stats.bootstrap import FloatArray
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


PERPLEXITY = "perplexity"
"""The folder of the evaluate stage that holds ``{model}.{language}.parquet``, each whole."""


@dataclass(frozen=True)
class LanguageRows:
    """One model's rows of one language, in the order of their prompt ids."""

    prompt_ids: list[str]
    prompts: list[str]
    completions: list[list[str]]
    scores: FloatArray
    """``(num_prompts, largest k)``, NaN where there is no score or no completion."""
    perplexities: FloatArray
    """As ``scores``; all NaN where perplexities were not asked for."""

    @property
    def num_completions(self) -> int:
        return sum(map(len, self.completions))


def perplexity_schema() -> pa.Schema:
    import pyarrow as pa

    key = [("prompt_id", pa.string()), ("language", pa.string()), ("model", pa.string())]
    return pa.schema([*key, ("perplexities", pa.list_(pa.float64()))])


def perplexity_file(model: str, language: str) -> str:
    return f"{model}.{language}.parquet"


def write_perplexities(
    folder: Folder, model: str, language: str, prompt_ids: Sequence[str], values: Sequence[Sequence[float | None]]
) -> None:
    """Write the perplexities of one model in one language, whole or not at all."""
    import pyarrow as pa

    rows = [
        {"prompt_id": prompt_id, "language": language, "model": model, "perplexities": list(own)}
        for prompt_id, own in zip(prompt_ids, values, strict=True)
    ]
    folder.write_parquet(perplexity_file(model, language), pa.Table.from_pylist(rows, schema=perplexity_schema()))


def read_completions(run: Folder, model: str) -> dict[str, LanguageRows]:
    """A model's completions by language, in the order of :data:`LANGUAGES`; scores and perplexities all NaN.

    Raises:
        InputError: there are none, or a prompt occurs twice.
        StageError: there are not as many as the finished stage made.
    """
    place = StageFolder(run / "generate" / model, "generate", model)
    folder = place.rows
    table = folder.read_parquet(schema(Completions), ["prompt_id", "language", "prompt", "completions"])
    by_language: dict[str, dict[str, tuple[str, list[str]]]] = {}
    for row in table.to_pylist():
        rows = by_language.setdefault(row["language"], {})
        if row["prompt_id"] in rows:
            raise InputError(f"{folder}: prompt {row['prompt_id']} occurs twice; remove one of its files")
        rows[row["prompt_id"]] = (row["prompt"], row["completions"])
    _check_whole(place, table.num_rows)
    if not by_language:
        raise InputError(f"{folder}: no completions of model {model!r}; run the generate stage first")
    found = {}
    for language in sorted(by_language, key=list(LANGUAGES).index):
        rows = by_language[language]
        # en/9 before en/10: the order of the prompt file, whatever order the rows were written in.
        ids = sorted(rows, key=lambda one: (len(one), one))
        completions = [rows[one][1] for one in ids]
        missing = np.full((len(ids), max(map(len, completions))), np.nan)
        found[language] = LanguageRows(ids, [rows[one][0] for one in ids], completions, missing, missing)
    return found


def read_language_rows(run: Folder, model: str, attribute: str, with_perplexity: bool) -> dict[str, LanguageRows]:
    """All rows of a model by language. A prompt without a row of scores has none, and is counted as such.

    Raises:
        InputError: completions and scores do not fit.
        StageError: perplexities are asked for, and some were not computed; or there are not as many rows as the
            finished stages made.
    """
    import pyarrow.compute as pc

    place = StageFolder(run / "score" / model, "score", model)
    folder = place.rows
    table = folder.read_parquet(schema(Scores), ["prompt_id", "scores"])
    _check_whole(place, table.num_rows)
    flat = pc.struct_field(pc.list_flatten(table["scores"]), attribute)
    scores = _by_prompt(table, "scores", flat)
    perplexities = {}
    if with_perplexity:
        measured = (run / "evaluate" / PERPLEXITY).read_parquet(perplexity_schema())
        measured = measured.filter(pc.field("model") == model)
        perplexities = _by_prompt(measured, "perplexities", pc.list_flatten(measured["perplexities"]))
    found = {}
    for language, rows in read_completions(run, model).items():
        absent = [one for one in rows.prompt_ids if with_perplexity and one not in perplexities]
        if absent:
            raise StageError(f"{model}: no perplexities of {absent[0]} and {len(absent) - 1} more; evaluate again")
        found[language] = LanguageRows(
            rows.prompt_ids,
            rows.prompts,
            rows.completions,
            _filled(rows, scores, f"{folder}: scores"),
            _filled(rows, perplexities, f"{run / 'evaluate' / PERPLEXITY}: perplexities"),
        )
    return found


def _check_whole(place: StageFolder, num_rows: int) -> None:
    """Refuse what is left of a finished stage's rows: the metrics would be those of fewer prompts, without a word."""
    manifest = place.manifest()
    made = manifest["counts"]["num_prompts"] if manifest else num_rows
    if num_rows != made:
        raise StageError(
            f"{place.rows}: {num_rows} rows, where the finished stage made {made}; "
            f"delete {place.folder / MANIFEST}, and the stage {place.stage} makes those that are missing"
        )


def _by_prompt(table: pa.Table, column: str, flat: pa.ChunkedArray) -> dict[str, FloatArray]:
    """The flattened values of a list column, cut up again by prompt; null becomes NaN."""
    import pyarrow.compute as pc

    ends = np.cumsum(pc.list_value_length(table[column]).to_numpy())
    values = np.split(flat.to_numpy().astype(np.float64), ends[:-1]) if table.num_rows else []
    return dict(zip(table["prompt_id"].to_pylist(), values, strict=True))


def _filled(rows: LanguageRows, values: dict[str, FloatArray], what: str) -> FloatArray:
    filled = np.full(rows.scores.shape, np.nan)
    for target, prompt_id, completions in zip(filled, rows.prompt_ids, rows.completions, strict=True):
        own = values.get(prompt_id)
        if own is None:
            continue
        if len(own) != len(completions):
            raise InputError(f"{what} of {prompt_id} are {len(own)}, its completions {len(completions)}")
        target[: len(own)] = own
    return filled
