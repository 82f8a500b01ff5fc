"""Rows of the stage ``activations``, one file for each language, and the metrics computed from them.

A language's mean activation is the mean over its prompts of the mean over the neurons. Averages are over languages,
each counting the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xgray.mechanism.metrics_file import ActivationChange, ActivationChanges, ActivationMeans, NeuronMeans
from xgray.rows import item_ids
from xgray.stats.bootstrap import adjust_p_values
from xgray.stats.intervals import Comparison, Estimate, Stratum, average_of, mean_of
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ActivationRows:
    """One model's rows of one language, in the order of the prompt file."""

    prompt_ids: list[str]
    activations: npt.NDArray[np.float32]
    """Each neuron's mean over the greedy tokens after the prompt, ``(num_prompts, num_neurons)``."""
    num_tokens: npt.NDArray[np.int32]
    """The number of these tokens, ``(num_prompts,)``."""


def activation_schema() -> pa.Schema:
    """Return the Parquet schema of the rows."""
    import pyarrow as pa

    columns = [("prompt_id", pa.string()), ("language", pa.string()), ("num_tokens", pa.int32())]
    return pa.schema([*columns, ("activations", pa.list_(pa.float32()))])


def rows_file(language: str) -> str:
    """Return the name of a language's file."""
    return f"{language}.parquet"


def write_activations(folder: Folder, language: str, rows: ActivationRows) -> None:
    """Write the rows of one language as one complete file."""
    import pyarrow as pa

    columns = [rows.prompt_ids, [language] * len(rows.prompt_ids), rows.num_tokens, list(rows.activations)]
    folder.write_parquet(rows_file(language), pa.Table.from_arrays(columns, schema=activation_schema()))


def read_activations(folder: Folder, languages: Sequence[str]) -> dict[str, ActivationRows]:
    """Read the rows of each language.

    Raises:
        StageError: a file is damaged.
    """
    rows = {}
    for language in languages:
        table = folder.read_table(rows_file(language))
        rows[language] = ActivationRows(
            table["prompt_id"].to_pylist(),
            np.array(table["activations"].to_pylist(), dtype=np.float32),
            table["num_tokens"].to_numpy(),
        )
    return rows


def activation_metrics(rows: Mapping[str, ActivationRows], confidence: float) -> ActivationMeans:
    """Compute each language's mean activation with its interval over prompts, and the average over languages.

    Args:
        rows: by language.
        confidence: of the intervals; 0.95 for 95 %.
    """
    strata: list[Stratum] = []
    languages: dict[str, NeuronMeans] = {}
    for language, language_rows in rows.items():
        estimate = _mean_activation(language_rows)
        strata.append(Stratum(estimate, item_ids(language_rows.prompt_ids, language)))
        languages[language] = {
            "mean": estimate.to_dict(confidence),
            "neurons": language_rows.activations.astype(np.float64).mean(axis=0).tolist(),
            "num_prompts": len(language_rows.prompt_ids),
            "num_tokens": int(language_rows.num_tokens.sum()),
        }
    average: NeuronMeans = {
        "mean": average_of(strata).to_dict(confidence),
        "neurons": np.mean([values["neurons"] for values in languages.values()], axis=0).tolist(),
        "num_prompts": sum(values["num_prompts"] for values in languages.values()),
        "num_tokens": sum(values["num_tokens"] for values in languages.values()),
    }
    return {"languages": languages, "average": average}


def activation_changes(
    before: Mapping[str, ActivationRows],
    after: Mapping[str, ActivationRows],
    confidence: float,
) -> ActivationChanges:
    """Compare two models on the same prompts: the change in each language, and that of the average over languages.

    p-values are of paired t-tests over prompts, adjusted over the languages (Benjamini & Hochberg 1995); the average is
    a single test. There is no relative change, because a mean activation can be 0 or change its sign.

    Args:
        before: the rows of one model, by language.
        after: the rows of the other model, of the same prompts.
        confidence: of the intervals; a change is significant where the adjusted p-value is below ``1 - confidence``.
    """
    comparisons: dict[str, Comparison] = {}
    strata: list[list[Stratum]] = [[], []]
    for language, rows in before.items():
        comparisons[language] = Comparison(_mean_activation(rows), _mean_activation(after[language]))
        items = item_ids(rows.prompt_ids, language)
        strata[0].append(Stratum(comparisons[language].before, items))
        strata[1].append(Stratum(comparisons[language].after, items))
    p_values = adjust_p_values([comparison.p_value for comparison in comparisons.values()])
    mean = Comparison(average_of(strata[0]), average_of(strata[1]))
    return {
        "languages": {
            language: _change(comparison, confidence, p_adjusted)
            for (language, comparison), p_adjusted in zip(comparisons.items(), p_values, strict=True)
        },
        "average": _change(mean, confidence, mean.p_value),
    }


def _change(comparison: Comparison, confidence: float, p_adjusted: float) -> ActivationChange:
    low, high = comparison.interval(confidence) or (None, None)
    return {
        "difference": comparison.difference,
        "low": low,
        "high": high,
        "p_value": comparison.p_value,
        "p_adjusted": p_adjusted,
        "significant": p_adjusted < 1 - confidence,
    }


def _mean_activation(rows: ActivationRows) -> Estimate:
    """Return the mean over prompts of each prompt's mean over the neurons."""
    return mean_of(rows.activations.astype(np.float64).mean(axis=1), "real")
