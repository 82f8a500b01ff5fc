"""The metrics of a run from its rows: each model in each language and averaged, and each variant against the base.

    completions ─▶ diversity ─┐
    scores ──────▶ toxicity ──┼─▶ value and interval ─▶ comparison with the base, FDR over languages
    perplexities ─────────────┘

Averages are over languages, each counting the same. Prompts with the same index are translations of each other, and
count as one item of an average. Nothing is drawn at random, so that the same rows give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from xgray.config import BASE, Evaluate, Model
from xgray.errors import InputError
from xgray.evaluate.diversity import diversity, released_groups
from xgray.evaluate.metrics_file import (
    DIVERSITY_METRICS,
    METRIC_NAMES,
    TOXICITY_METRICS,
    Bounds,
    EvaluateMetrics,
    MetricName,
    ModelComparison,
    ModelMetrics,
    Quartiles,
    SampleMetrics,
)
from xgray.evaluate.refusals import is_refusal
from xgray.evaluate.rows import LanguageRows, read_language_rows
from xgray.evaluate.toxicity import (
    average_bounds,
    common_number,
    merge_duplicates,
    metric_bounds,
    num_scored,
    toxicity_estimate,
)
from xgray.languages import LANGUAGES
from xgray.models.load import load_tokenizer
from xgray.models.source import resolve
from xgray.stats.bootstrap import FloatArray, adjust_p_values
from xgray.stats.intervals import Comparison, Estimate, Stratum, average_of, quantile_of, ratio_of
from xgray.stats.values import MetricChange, MetricValue
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MetricInput:
    """What one metric of one model in one language is computed from."""

    keys: list[str]
    """Names of the units, usually prompt ids, ``(num_prompts,)``: units of the same name are compared."""
    items: list[str]
    """Names of the units without their language, ``(num_prompts,)``: those of the same name are translations."""
    arrays: tuple[FloatArray, ...]
    """The statistic's arguments, each ``(num_prompts, ...)``."""
    statistic: Callable[..., Estimate]
    """Makes the estimate from ``arrays``."""
    missing_reason: str
    """Why the metric has no value, if ``keys`` is empty."""
    unpaired_reason: str = ""
    """Why two models cannot be compared unit by unit; empty where they can."""
    is_of_scores: bool = False
    """Whether ``arrays`` are scores, of which two models are compared by equally many of each prompt."""


AVERAGE = "average"
InputsByLanguage = Mapping[str, Mapping[MetricName, MetricInput]]
"""The inputs of one model, by language and metric."""


def evaluate_run(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    base: Model,
    *,
    attribute: str = "toxicity",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluateMetrics:
    """Compute the metrics of a run, as ``evaluate/metrics.json`` holds them. Nothing is written.

    Args:
        run: the run's folder, with rows of completions, scores and, unless ``fluency.kind`` is ``none``, perplexities.
        models: names of the models to evaluate; the variants are compared with ``base`` if it is among them.
        base: the experiment's base model, whose tokenizer counts n-grams unless the section names another.
        attribute: the scored attribute, one of :data:`xgray.rows.ATTRIBUTES`.
        on_progress: called with the number of finished pairs of model and language, and the number of all pairs.

    Raises:
        InputError: rows are missing or do not fit together, or the tokenizer cannot be read.
        StageError: some perplexities were not computed yet, or rows of a finished stage are lost.
    """
    tokenizer = _load_diversity_tokenizer(section, base)
    with_perplexity = section.fluency.kind != "none"
    rows = {model: read_language_rows(run, model, attribute, with_perplexity) for model in models}
    languages = [code for code in LANGUAGES if any(code in by_language for by_language in rows.values())]
    total, done = len(models) * len(languages), 0
    # A failed prompt has no completions, so k is read off the other prompts; it is at least 1.
    k = max([1, *(len(group) for model in models for each in rows[model].values() for group in each.completions)])
    inputs: dict[str, dict[str, dict[MetricName, MetricInput]]] = {model: {} for model in models}
    for model in models:
        for language, language_rows in rows[model].items():
            inputs[model][language] = metric_inputs(language_rows, section, tokenizer, k)
            done += 1
            on_progress(done, total)
    return {
        "attribute": attribute,
        "threshold": section.threshold,
        "confidence": section.confidence,
        "resamples": section.resamples,
        "intervals": "errors",
        "protocol": {
            "grouping": section.grouping,
            "diversity": section.diversity,
            "fluency": section.fluency.protocol,
            "fluency_model": (section.fluency.model or base).id,
            "fluency_kind": section.fluency.kind,
            "diversity_tokenizer": section.diversity_tokenizer or base.id,
        },
        "languages": languages,
        "models": {model: model_metrics(inputs[model], rows[model], languages, section) for model in models},
        "comparisons": {
            model: model_comparison(inputs[BASE], inputs[model], languages, section.confidence)
            for model in models
            if model != BASE and BASE in models
        },
    }


def _load_diversity_tokenizer(section: Evaluate, base: Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer whose tokens Dist-n counts; a named folder may hold it without a model."""
    named = section.diversity_tokenizer
    if named is None:
        return load_tokenizer(resolve(base), base.revision)
    try:
        if Path(named).is_dir():
            return load_tokenizer(named)
        return load_tokenizer(resolve(Model(id=named)), section.diversity_tokenizer_revision)
    except (OSError, ValueError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"evaluate.diversity_tokenizer: cannot load a tokenizer from {named}: {reason}. "
            "Name a model or a folder that holds a tokenizer."
        ) from None


def metric_inputs(
    rows: LanguageRows, section: Evaluate, tokenizer: PreTrainedTokenizerBase, k: int
) -> dict[MetricName, MetricInput]:
    """Return what each metric of one model in one language is computed from.

    Args:
        k: number of completions of each prompt in the run.
    """
    return {
        **toxicity_inputs(rows, section),
        "perplexity": _perplexity_input(rows, section),
        **_diversity_inputs(rows, section, tokenizer, k),
    }


def toxicity_inputs(rows: LanguageRows, section: Evaluate) -> dict[MetricName, MetricInput]:
    """Return what EMT, ToxProb and AvgTox of one model in one language are computed from."""
    keys, items, scores = rows.prompt_ids, rows.items, rows.scores
    if section.grouping == "released":
        items = first_of_each(rows.prompts, rows.items)
        keys, scores = merge_duplicates(rows.prompts, scores)
    return {
        metric: score_input(metric, keys, items, scores, section.threshold, "no completion has a score")
        for metric in TOXICITY_METRICS
    }


def first_of_each(texts: Sequence[str], items: Sequence[str]) -> list[str]:
    """Return the item of the first occurrence of each distinct text, in the order of the texts."""
    first: dict[str, str] = {}
    for text, item in zip(texts, items, strict=True):
        first.setdefault(text, item)
    return list(first.values())


def score_input(
    metric: str, keys: Sequence[str], items: Sequence[str], scores: FloatArray, threshold: float, missing_reason: str
) -> MetricInput:
    """Return what EMT, ToxProb or AvgTox of the prompts with a score is computed from.

    Args:
        keys: names of the prompts, and
        items: those without their language.
        scores: ``(num_prompts, k)``, NaN for a missing score.
    """
    kept = np.flatnonzero(num_scored(scores))
    return MetricInput(
        [keys[row] for row in kept],
        [items[row] for row in kept],
        (scores[kept],),
        partial(toxicity_estimate, metric, threshold),
        missing_reason,
        is_of_scores=True,
    )


def _perplexity_input(rows: LanguageRows, section: Evaluate, share: float = 0.5) -> MetricInput:
    measured = np.flatnonzero(~np.isnan(rows.perplexities).all(axis=1))
    is_off = section.fluency.kind == "none"
    return MetricInput(
        [rows.prompt_ids[row] for row in measured],
        [rows.items[row] for row in measured],
        (rows.perplexities[measured],),
        partial(quantile_of, share=share),
        "evaluate.fluency.kind is none" if is_off else "no completion has a perplexity",
    )


def _diversity_inputs(
    rows: LanguageRows, section: Evaluate, tokenizer: PreTrainedTokenizerBase, k: int
) -> dict[MetricName, MetricInput]:
    is_released = section.diversity == "released"
    groups = released_groups(rows.completions, k) if is_released else rows.completions
    group_ids = [str(row) for row in range(len(groups))] if is_released else rows.prompt_ids
    # Groups of lines are those of the prompts in their order, unless a group was dropped.
    items = rows.items if len(groups) == len(rows.items) else group_ids
    ratios = diversity(groups, tokenizer, section.diversity)
    with_tokens = np.flatnonzero(~np.isnan(ratios[:, 0]))
    return {
        metric: MetricInput(
            [group_ids[row] for row in with_tokens],
            [items[row] for row in with_tokens],
            (column, np.ones(len(column))),
            ratio_of,
            "no completion has a token",
            "evaluate.diversity is released: its groups are lines of the file, not prompts" if is_released else "",
        )
        for metric, column in zip(DIVERSITY_METRICS, ratios[with_tokens].T, strict=True)
    }


def model_metrics(
    inputs: InputsByLanguage,
    rows: Mapping[str, LanguageRows],
    languages: Sequence[str],
    section: Evaluate,
) -> ModelMetrics:
    """Return one model's metrics with intervals and counts, of each language and averaged over languages."""
    values = {
        metric: metric_by_language(of_metric(inputs, metric), languages, section.confidence) for metric in METRIC_NAMES
    }
    quartiles = _quartiles(rows, languages, section)
    # A failed prompt has no completions, so k is read off the other prompts; it is at least 1.
    k = max([1, *(len(group) for language_rows in rows.values() for group in language_rows.completions)])
    counts = {language: _counts(rows.get(language), language, k) for language in languages}
    total = {name: sum(count[name] for count in counts.values()) for name in _counts(None, "", k)}
    bounds = {
        language: metric_bounds(
            language_rows.prompts if section.grouping == "released" else None,
            language_rows.scores,
            k,
            section.threshold,
        )
        for language, language_rows in rows.items()
    }
    return {
        "languages": {
            language: _sample_metrics(
                {metric: by_language[language] for metric, (by_language, _) in values.items()},
                counts[language],
                bounds.get(language),
                quartiles[language],
            )
            for language in languages
        },
        "average": _sample_metrics(
            {metric: mean for metric, (_, mean) in values.items()},
            total,
            average_bounds(list(bounds.values())),
            quartiles[AVERAGE],
        ),
    }


def of_metric(inputs: InputsByLanguage, metric: MetricName) -> dict[str, MetricInput]:
    """Return the inputs of one metric, by language."""
    return {language: by_metric[metric] for language, by_metric in inputs.items()}


def _quartiles(
    rows: Mapping[str, LanguageRows], languages: Sequence[str], section: Evaluate
) -> dict[str, Quartiles | None]:
    """Return the quartiles of the perplexity by language and for :data:`AVERAGE`; None where it was not measured."""
    if section.fluency.kind == "none":
        return dict.fromkeys([*languages, AVERAGE])
    found = []
    for share in (0.25, 0.75):
        inputs = {language: _perplexity_input(of, section, share) for language, of in rows.items()}
        by_language, mean = metric_by_language(inputs, languages, section.confidence)
        found.append({**by_language, AVERAGE: mean})
    return {name: {"lower": found[0][name], "upper": found[1][name]} for name in [*languages, AVERAGE]}


def metric_by_language(
    inputs: Mapping[str, MetricInput], languages: Sequence[str], confidence: float
) -> tuple[dict[str, MetricValue], MetricValue]:
    """Return one metric's value in each language, and its mean over the languages that have one.

    Args:
        inputs: of the metric, by language.
    """
    values: dict[str, MetricValue] = {}
    strata: dict[str, Stratum] = {}
    for language in languages:
        given = inputs.get(language)
        if given is None or not given.keys:
            values[language] = _no_value(given.missing_reason if given else "no completions")
            continue
        strata[language] = Stratum(given.statistic(*given.arrays), given.items)
        values[language] = strata[language].estimate.to_dict(confidence)
    if not strata:
        return values, _no_value("no language has a value")
    averaged = average_of(list(strata.values())).to_dict(confidence)
    if reason := _left_out(strata, languages):
        averaged["reason"] = reason
    return values, averaged


def model_comparison(
    before: InputsByLanguage, after: InputsByLanguage, languages: Sequence[str], confidence: float
) -> ModelComparison:
    """Compare one model with the base on the prompts that both have, in each language and averaged over languages.

    p-values are adjusted over the languages, separately for each metric. A difference is significant where the
    adjusted value is below ``1 - confidence``. The average is a single test and needs no adjustment.
    """
    changes = {
        metric: change_by_language(of_metric(before, metric), of_metric(after, metric), languages, confidence)
        for metric in METRIC_NAMES
    }
    return {
        "languages": {
            language: {metric: by_language[language] for metric, (by_language, _) in changes.items()}
            for language in languages
        },
        "average": {metric: mean for metric, (_, mean) in changes.items()},
    }


def change_by_language(
    before: Mapping[str, MetricInput], after: Mapping[str, MetricInput], languages: Sequence[str], confidence: float
) -> tuple[dict[str, MetricChange], MetricChange]:
    """Return one metric's change in each language, and the change of its mean over the comparable languages.

    Args:
        before: inputs of the metric of the first model, by language.
        after: inputs of the metric of the second model, by language.
    """
    changes: dict[str, MetricChange] = {}
    compared: dict[str, Comparison] = {}
    items: dict[str, list[str]] = {}
    for language in languages:
        pair = [inputs[language] for inputs in (before, after) if language in inputs]
        common = _common_keys(pair)
        if not common:
            changes[language] = _no_change(_incomparable_reason(pair))
            continue
        compared[language], items[language] = compare_inputs(pair[0], pair[1], common)
    if not compared:
        return changes, _no_change("no language has a comparison")
    p_values = adjust_p_values([comparison.p_value for comparison in compared.values()])
    for (language, comparison), p_adjusted in zip(compared.items(), p_values, strict=True):
        changes[language] = comparison.to_dict(confidence, p_adjusted)
    mean = compare_averages(compared, items)
    averaged = mean.to_dict(confidence, mean.p_value)
    if reason := _left_out(compared, languages):
        averaged["reason"] = reason
    return changes, averaged


def compare_inputs(before: MetricInput, after: MetricInput, common: Sequence[str]) -> tuple[Comparison, list[str]]:
    """Return one metric before and after over the prompts of the common keys, and the items of these prompts."""
    rows = []
    for given in (before, after):
        row_of = {key: row for row, key in enumerate(given.keys)}
        rows.append([row_of[key] for key in common])
    arrays = [[array[chosen] for array in given.arrays] for given, chosen in zip((before, after), rows, strict=True)]
    shared = [common_number(arrays[0][0], arrays[1][0])] if before.is_of_scores else []
    comparison = Comparison(before.statistic(*arrays[0], *shared), after.statistic(*arrays[1], *shared))
    return comparison, [before.items[row] for row in rows[0]]


def compare_averages(compared: Mapping[str, Comparison], items: Mapping[str, Sequence[str]]) -> Comparison:
    """Return the comparison of the means over languages, of which ``items`` names each language's prompts."""
    return Comparison(
        average_of([Stratum(compared[language].before, items[language]) for language in compared]),
        average_of([Stratum(compared[language].after, items[language]) for language in compared]),
    )


def _common_keys(pair: Sequence[MetricInput]) -> list[str]:
    """Return the keys that both inputs have, in the order of the first; none where they cannot be paired."""
    if len(pair) < 2 or any(given.unpaired_reason for given in pair):
        return []
    keys_after = set(pair[1].keys)
    return [key for key in pair[0].keys if key in keys_after]


def _incomparable_reason(pair: Sequence[MetricInput]) -> str:
    unpaired = [given.unpaired_reason for given in pair if given.unpaired_reason]
    missing = [given.missing_reason for given in pair if not given.keys]
    return [*unpaired, *missing, "no prompt is in both models"][0]


def _counts(rows: LanguageRows | None, language: str, k: int) -> dict[str, int]:
    """Return the counts of :class:`xgray.evaluate.metrics_file.SampleCounts`."""
    return {
        "num_prompts": len(rows.prompt_ids) if rows else 0,
        "num_asked": len(rows.prompt_ids) * k if rows else 0,
        "num_prompts_scored": int((~np.isnan(rows.scores)).any(axis=1).sum()) if rows else 0,
        "num_completions": rows.num_completions if rows else 0,
        "num_scored": int((~np.isnan(rows.scores)).sum()) if rows else 0,
        "num_empty": sum(text == "" for group in rows.completions for text in group) if rows else 0,
        "num_refused": sum(is_refusal(text, language) for group in rows.completions for text in group) if rows else 0,
        "num_perplexity": int((~np.isnan(rows.perplexities)).sum()) if rows else 0,
    }


def _sample_metrics(
    values: Mapping[MetricName, MetricValue],
    counts: Mapping[str, int],
    bounds: Mapping[MetricName, Bounds] | None,
    quartiles: Quartiles | None,
) -> SampleMetrics:
    """Return the metrics of one model as the file holds them; bounds only where a score is missing."""
    coverage = counts["num_scored"] / counts["num_asked"] if counts["num_asked"] else None
    known: dict[str, object] = {"bounds": bounds} if counts["num_scored"] < counts["num_asked"] else {}
    if quartiles is not None:
        known["perplexity_quartiles"] = quartiles
    return cast(SampleMetrics, {**values, **counts, "coverage": coverage, **known})


def _no_value(reason: str) -> MetricValue:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _no_change(reason: str) -> MetricChange:
    return {
        "difference": None,
        "low": None,
        "high": None,
        "relative_change": None,
        "relative_low": None,
        "relative_high": None,
        "p_value": None,
        "p_adjusted": None,
        "significant": None,
        "detectable": None,
        "reason": reason,
    }


def _left_out(present: Container[str], languages: Sequence[str]) -> str:
    """Return which languages an average leaves out, ``without de fr``; empty where it has all."""
    absent = [language for language in languages if language not in present]
    return f"without {' '.join(absent)}" if absent else ""
