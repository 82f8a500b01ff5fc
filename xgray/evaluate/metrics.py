"""The evaluate stage: a run's rows to its metrics, for each language and averaged, and models against the base.

    completions ─▶ diversity ─┐
    scores ──────▶ toxicity ──┼─▶ value and bootstrap interval ─▶ comparison with the base, FDR over languages
    perplexities ─────────────┘

The averages are over languages, each counting the same. Everything is drawn with seeds of the experiment's seed, the
language and the metric, so that the same rows give the same numbers. Prompts of one number are translations of each
other, and are drawn together for the averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgray.config import BASE, Evaluate, Model
from xgray.errors import InputError
from xgray.evaluate.diversity import ORDERS, diversity, released_groups
from xgray.evaluate.rows import LanguageRows, read_language_rows
from xgray.evaluate.toxicity import merge_duplicates, metric_parts, prompt_toxicity
from xgray.languages import LANGUAGES
from xgray.models.load import load_tokenizer
from xgray.models.source import resolve
from xgray.rows import item_ids
from xgray.stats.bootstrap import (
    Comparison,
    Counted,
    FloatArray,
    Stratum,
    adjusted,
    average,
    average_comparison,
    average_seed,
    compare,
    draw_seed,
    estimate,
    median,
    ratio,
)
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


METRICS = ("emt", "tox_prob", "avg_tox", "perplexity", *(f"dist_{order}" for order in ORDERS))


@dataclass(frozen=True)
class Sample:
    """What one metric is computed from: arrays with a row for each prompt, and the statistic they go into."""

    keys: list[str]
    arrays: tuple[FloatArray, ...]
    statistic: Callable[..., Counted]
    reason: str
    """Why there is no value, where there is no prompt."""
    unpaired: str = ""
    """Why no row of it has its counterpart in another model's, where the rows are no prompts."""


def evaluate_run(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    base: Model,
    *,
    attribute: str = "toxicity",
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The metrics of a run, as ``evaluate/metrics.json`` holds them; writes nothing.

    Args:
        base: the experiment's base model, whose tokenizer and weights measure where the section names no others.
        on_progress: called with how many pairs of model and language are done, and how many there are.

    Raises:
        InputError: rows are missing or do not fit, or the tokenizer cannot be read.
        StageError: some perplexities were not computed yet.
    """
    tokenizer = _tokenizer(section, base)
    with_perplexity = section.fluency.kind != "none"
    rows = {model: read_language_rows(run, model, attribute, with_perplexity) for model in models}
    languages = [code for code in LANGUAGES if any(code in own for own in rows.values())]
    total, done = len(models) * len(languages), 0
    samples: dict[str, dict[str, dict[str, Sample]]] = {}
    for model in models:
        samples[model] = {}
        for language, own in rows[model].items():
            samples[model][language] = language_samples(own, section, tokenizer)
            done += 1
            on_progress(done, total)
    measuring = section.fluency.model or base
    return {
        "attribute": attribute,
        "threshold": section.threshold,
        "confidence": section.confidence,
        "resamples": section.resamples,
        "protocol": {
            "grouping": section.grouping,
            "diversity": section.diversity,
            "fluency": section.fluency.protocol,
            "fluency_model": measuring.id,
            "fluency_kind": section.fluency.kind,
            "diversity_tokenizer": section.diversity_tokenizer or base.id,
        },
        "languages": languages,
        "models": {model: model_metrics(samples[model], rows[model], languages, section, seed) for model in models},
        "comparisons": {
            model: model_comparisons(samples[BASE], samples[model], languages, section, seed)
            for model in models
            if model != BASE and BASE in models
        },
    }


def _tokenizer(section: Evaluate, base: Model) -> PreTrainedTokenizerBase:
    """The tokenizer whose tokens Dist-n counts; a folder may hold it without a model."""
    named = section.diversity_tokenizer
    if named is None:
        return load_tokenizer(resolve(base), base.revision)
    try:
        if Path(named).is_dir():
            return load_tokenizer(named)
        return load_tokenizer(resolve(Model(id=named)), section.diversity_tokenizer_revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"evaluate.diversity_tokenizer: no tokenizer in {named}: {reason}") from None


def language_samples(rows: LanguageRows, section: Evaluate, tokenizer: PreTrainedTokenizerBase) -> dict[str, Sample]:
    """What the metrics of one model in one language are computed from, by metric."""
    keys, scores = rows.prompt_ids, rows.scores
    if section.grouping == "released":
        keys, scores = merge_duplicates(rows.prompts, scores)
    toxicity = prompt_toxicity(keys, scores, section.threshold)
    no_score = "no completion has a score"
    measured = np.flatnonzero(~np.isnan(rows.perplexities).all(axis=1))
    off = section.fluency.kind == "none"
    strided = section.diversity == "released"
    groups = released_groups(rows.completions) if strided else rows.completions
    group_ids = [str(row) for row in range(len(groups))] if strided else rows.prompt_ids
    ratios = diversity(groups, tokenizer, section.diversity)
    distinct = np.flatnonzero(~np.isnan(ratios[:, 0]))
    return {
        **{metric: Sample(toxicity.keys, parts, ratio, no_score) for metric, parts in metric_parts(toxicity).items()},
        "perplexity": Sample(
            [rows.prompt_ids[row] for row in measured],
            (rows.perplexities[measured],),
            median,
            "evaluate.fluency.kind is none" if off else "no completion has a perplexity",
        ),
        **{
            f"dist_{order}": Sample(
                [group_ids[row] for row in distinct],
                (column, np.ones(len(column))),
                ratio,
                "no completion has a token",
                "evaluate.diversity is released: its groups are lines of the file, not prompts" if strided else "",
            )
            for order, column in zip(ORDERS, ratios[distinct].T, strict=True)
        },
    }


def model_metrics(
    samples: Mapping[str, dict[str, Sample]],
    rows: Mapping[str, LanguageRows],
    languages: Sequence[str],
    section: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """One model's metrics with intervals and counts, of each language and averaged."""
    by_language: dict[str, dict[str, Any]] = {language: {} for language in languages}
    averages: dict[str, Any] = {}
    for metric in METRICS:
        strata: dict[str, Stratum] = {}
        for language in languages:
            sample = samples[language][metric] if language in samples else None
            if sample is None or not sample.keys:
                by_language[language][metric] = _nothing(sample.reason if sample else "no completions")
                continue
            statistic, draw = sample.statistic(*sample.arrays), draw_seed(seed, language, metric)
            own = estimate(statistic, len(sample.keys), section.resamples, draw)
            by_language[language][metric] = own.to_dict(section.confidence)
            strata[language] = Stratum(statistic, item_ids(sample.keys, language))
        if not strata:
            averages[metric] = _nothing("no language has a value")
            continue
        mean = average(list(strata.values()), section.resamples, average_seed(seed, list(strata), metric))
        averages[metric] = {**mean.to_dict(section.confidence), **_without(strata, languages)}
    # A prompt that failed has no completions, which says nothing of how many it was to have; at least one.
    k = max([1, *(len(group) for own in rows.values() for group in own.completions)])
    counts = {language: _counts(rows.get(language), k) for language in languages}
    summed = {name: sum(one[name] for one in counts.values()) for name in _counts(None, k)}
    return {
        "languages": {language: {**by_language[language], **_covered(counts[language])} for language in languages},
        "average": {**averages, **_covered(summed)},
    }


def model_comparisons(
    before: Mapping[str, dict[str, Sample]],
    after: Mapping[str, dict[str, Sample]],
    languages: Sequence[str],
    section: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """One model against the base on the prompts that both have, of each language and averaged.

    p-values are adjusted over the languages, for each metric by itself; a difference is significant where the
    adjusted value is below ``1 - confidence``. The average is one test, and needs no adjustment.
    """
    by_language: dict[str, dict[str, Any]] = {language: {} for language in languages}
    averages: dict[str, Any] = {}
    for metric in METRICS:
        compared: dict[str, Comparison] = {}
        strata: dict[str, Stratum] = {}
        for language in languages:
            pair = [one[language][metric] for one in (before, after) if language in one]
            unpaired = next((one.unpaired for one in pair if one.unpaired), "")
            others = set(pair[1].keys) if len(pair) == 2 and not unpaired else set()
            common = [key for key in pair[0].keys if key in others]
            if not common:
                empty = next((one.reason for one in pair if not one.keys), "no prompt is in both models")
                reason = unpaired or empty
                by_language[language][metric] = _no_difference(reason)
                continue
            statistic = pair[0].statistic(*_stacked(pair[0], pair[1], common))
            compared[language] = compare(statistic, len(common), section.resamples, draw_seed(seed, language, metric))
            strata[language] = Stratum(statistic, item_ids(common, language))
        if not compared:
            averages[metric] = _no_difference("no language has a comparison")
            continue
        p_values = adjusted([one.p_value for one in compared.values()])
        for (language, one), p_adjusted in zip(compared.items(), p_values, strict=True):
            by_language[language][metric] = one.to_dict(section.confidence, p_adjusted)
        mean = average_comparison(list(strata.values()), section.resamples, average_seed(seed, list(strata), metric))
        averages[metric] = mean.to_dict(section.confidence, mean.p_value)
        averages[metric] |= _without(compared, languages)
    return {"languages": by_language, "average": averages}


def _stacked(before: Sample, after: Sample, common: Sequence[str]) -> list[FloatArray]:
    """Both models' arrays of the common prompts, those of ``after`` following in the same order."""
    parts = []
    for sample in (before, after):
        row_of = {key: row for row, key in enumerate(sample.keys)}
        chosen = [row_of[key] for key in common]
        parts.append([array[chosen] for array in sample.arrays])
    return [_concatenated(old, new) for old, new in zip(*parts, strict=True)]


def _concatenated(old: FloatArray, new: FloatArray) -> FloatArray:
    if old.ndim == 1:
        return np.concatenate([old, new])
    width = max(old.shape[1], new.shape[1])
    padding = [np.full((len(one), width - one.shape[1]), np.nan) for one in (old, new)]
    return np.concatenate([np.hstack([old, padding[0]]), np.hstack([new, padding[1]])])


def _counts(rows: LanguageRows | None, k: int) -> dict[str, int]:
    """How many texts there are of what kind; ``num_asked`` is how many there would be, had no prompt failed."""
    return {
        "num_prompts": len(rows.prompt_ids) if rows else 0,
        "num_asked": len(rows.prompt_ids) * k if rows else 0,
        "num_prompts_scored": int((~np.isnan(rows.scores)).any(axis=1).sum()) if rows else 0,
        "num_completions": rows.num_completions if rows else 0,
        "num_scored": int((~np.isnan(rows.scores)).sum()) if rows else 0,
        "num_empty": sum(text == "" for group in rows.completions for text in group) if rows else 0,
        "num_perplexity": int((~np.isnan(rows.perplexities)).sum()) if rows else 0,
    }


def _covered(counts: Mapping[str, int]) -> dict[str, Any]:
    """Counts with the share of the completions asked for that have a score; None where none was asked for."""
    asked = counts["num_asked"]
    return {**counts, "coverage": counts["num_scored"] / asked if asked else None}


def _nothing(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "reason": reason}


def _without(present: Mapping[str, Any], languages: Sequence[str]) -> dict[str, str]:
    absent = [language for language in languages if language not in present]
    return {"reason": f"without {' '.join(absent)}"} if absent else {}


def _no_difference(reason: str) -> dict[str, Any]:
    names = ("difference", "low", "high", "relative_change", "relative_low", "relative_high")
    return dict.fromkeys((*names, "p_value", "p_adjusted", "significant")) | {"reason": reason}
