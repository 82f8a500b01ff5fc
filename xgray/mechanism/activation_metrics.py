"""Rows of the stage ``activations``, a file for each language, and what is made of them: means, intervals, changes.

A language's value is the mean over its prompts of the mean over the neurons. The averages are over languages, each
counting the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xgray.rows import item_ids
from xgray.stats.bootstrap import (
    Comparison,
    FloatArray,
    Stratum,
    adjust_p_values,
    average_seed,
    compare,
    compare_averages,
    draw_seed,
    estimate,
    estimate_average,
    ratio_statistic,
)
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ActivationRows:
    """One model's rows of one language, in the order of the prompt file."""

    prompt_ids: list[str]
    activations: npt.NDArray[np.float32]
    """``(num_prompts, num_neurons)``: each neuron's mean over the prompt's greedy tokens."""
    num_tokens: npt.NDArray[np.int32]
    """``(num_prompts,)``: over how many."""


def activation_schema() -> pa.Schema:
    import pyarrow as pa

    columns = [("prompt_id", pa.string()), ("language", pa.string()), ("num_tokens", pa.int32())]
    return pa.schema([*columns, ("activations", pa.list_(pa.float32()))])


def rows_file(language: str) -> str:
    return f"{language}.parquet"


def write_activations(folder: Folder, language: str, rows: ActivationRows) -> None:
    """Write one language's rows, whole or not at all."""
    import pyarrow as pa

    columns = [rows.prompt_ids, [language] * len(rows.prompt_ids), rows.num_tokens, list(rows.activations)]
    folder.write_parquet(rows_file(language), pa.Table.from_arrays(columns, schema=activation_schema()))


def read_activations(folder: Folder, languages: Sequence[str]) -> dict[str, ActivationRows]:
    """The rows of each language.

    Raises:
        StageError: a file is damaged.
    """
    found = {}
    for language in languages:
        table = folder.read_table(rows_file(language))
        found[language] = ActivationRows(
            table["prompt_id"].to_pylist(),
            np.array(table["activations"].to_pylist(), dtype=np.float32),
            table["num_tokens"].to_numpy(),
        )
    return found


def activation_metrics(
    rows: Mapping[str, ActivationRows], confidence: float, resamples: int, seed: int
) -> dict[str, Any]:
    """Each language's mean with its interval over prompts and each neuron's mean, and the averages over languages."""
    strata: list[Stratum] = []
    languages: dict[str, dict[str, Any]] = {}
    for language, own in rows.items():
        means = _prompt_means(own)
        statistic, draw = ratio_statistic(means, np.ones(len(means))), draw_seed(seed, language, "activations")
        strata.append(Stratum(statistic, item_ids(own.prompt_ids, language)))
        languages[language] = {
            "mean": estimate(statistic, len(means), resamples, draw).to_dict(confidence),
            "neurons": own.activations.astype(np.float64).mean(axis=0).tolist(),
            **_counts(own),
        }
    counts = [_counts(own) for own in rows.values()]
    return {
        "languages": languages,
        "average": {
            "mean": estimate_average(strata, resamples, average_seed(seed, list(rows), "activations")).to_dict(
                confidence
            ),
            "neurons": np.mean([one["neurons"] for one in languages.values()], axis=0).tolist(),
            **{name: sum(one[name] for one in counts) for name in counts[0]},
        },
    }


def activation_changes(
    before: Mapping[str, ActivationRows],
    after: Mapping[str, ActivationRows],
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Two models on the same prompts: each language's change, and the average's.

    p-values are of paired permutation tests over prompts, adjusted over the languages; the average is one test. There
    is no relative change: a mean activation passes through 0.
    """
    compared, strata = {}, []
    for language, own in before.items():
        pair = np.concatenate([_prompt_means(own), _prompt_means(after[language])])
        statistic, draw = ratio_statistic(pair, np.ones(len(pair))), draw_seed(seed, language, "activations")
        compared[language] = compare(statistic, len(own.prompt_ids), resamples, draw)
        strata.append(Stratum(statistic, item_ids(own.prompt_ids, language)))
    p_values = adjust_p_values([one.p_value for one in compared.values()])
    mean = compare_averages(strata, resamples, average_seed(seed, list(before), "activations"))
    return {
        "languages": {
            language: _told(one, confidence, p_adjusted)
            for (language, one), p_adjusted in zip(compared.items(), p_values, strict=True)
        },
        "average": _told(mean, confidence, mean.p_value),
    }


def _told(change: Comparison, confidence: float, p_adjusted: float) -> dict[str, Any]:
    told = change.to_dict(confidence, p_adjusted)
    left_out = ("before", "after", "relative_change", "relative_low", "relative_high")
    return {name: value for name, value in told.items() if name not in left_out}


def _prompt_means(rows: ActivationRows) -> FloatArray:
    """The mean over the neurons, ``(num_prompts,)``."""
    return rows.activations.astype(np.float64).mean(axis=1)


def _counts(rows: ActivationRows) -> dict[str, int]:
    return {"num_prompts": len(rows.prompt_ids), "num_tokens": int(rows.num_tokens.sum())}
