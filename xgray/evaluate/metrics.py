"""The metrics of a run from its rows: each model in each language and averaged, and each variant against the base.

    completions ─▶ diversity ─┐
    scores ──────▶ toxicity ──┼─▶ value and interval ─▶ comparison with the base, FDR over languages
    perplexities ─────────────┘

Averages are over languages, each counting the same. Prompts with the same index are translations of each other, and
count as one item of an average. Nothing is drawn at random, so that the same rows give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from xgray.config import BASE, Evaluate, Model, SweepPoint
from xgray.errors import InputError
from xgray.evaluate.comparison import (
    AVERAGE,
    InputsByLanguage,
    MetricInput,
    metric_by_language,
    model_comparison,
    of_metric,
)
from xgray.evaluate.diversity import diversity, released_groups
from xgray.evaluate.metrics_file import (
    DIVERSITY_METRICS,
    METRIC_NAMES,
    TOXICITY_METRICS,
    Bounds,
    EvaluateMetrics,
    MetricName,
    ModelMetrics,
    Protocol,
    Quartiles,
    SampleMetrics,
)
from xgray.evaluate.refusals import is_refusal
from xgray.evaluate.rows import LanguageRows, read_language_rows
from xgray.evaluate.sweep import sweep_metrics
from xgray.evaluate.toxicity import (
    average_bounds,
    merge_duplicates,
    metric_bounds,
    num_scored,
    toxicity_estimate,
)
from xgray.languages import LANGUAGES
from xgray.models.load import load_tokenizer
from xgray.models.source import resolve
from xgray.stats.bootstrap import FloatArray
from xgray.stats.intervals import quantile_of, ratio_of
from xgray.stats.values import MetricValue
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate_run(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    base: Model,
    *,
    attribute: str = "toxicity",
    sweep: Mapping[str, SweepPoint] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvaluateMetrics:
    """Compute the metrics of a run, as ``evaluate/metrics.json`` holds them. Nothing is written.

    Args:
        run: the run's folder, with rows of completions, scores and, unless ``fluency.kind`` is ``none``, perplexities.
        models: names of the models to evaluate; the variants are compared with ``base`` if it is among them.
        base: the experiment's base model, whose tokenizer counts n-grams unless the section names another.
        attribute: the scored attribute, one of :data:`xgray.rows.ATTRIBUTES`.
        sweep: the points of the variants that a sweep made; none without a sweep.
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
    of_models = {model: model_metrics(inputs[model], rows[model], languages, section) for model in models}
    metrics: EvaluateMetrics = {
        "attribute": attribute,
        "threshold": section.threshold,
        "confidence": section.confidence,
        "resamples": section.resamples,
        "intervals": "errors",
        "protocol": _protocol(section, base),
        "languages": languages,
        "models": of_models,
        "comparisons": {
            model: model_comparison(inputs[BASE], [inputs[model]], languages, section.confidence)
            for model in models
            if model != BASE and BASE in models
        },
    }
    points = {name: point for name, point in (sweep or {}).items() if name in models}
    if points:
        metrics["sweep"] = sweep_metrics(points, inputs, of_models, languages, section.confidence)
    return metrics


def _protocol(section: Evaluate, base: Model) -> Protocol:
    return {
        "grouping": section.grouping,
        "diversity": section.diversity,
        "fluency": section.fluency.protocol,
        "fluency_model": (section.fluency.model or base).id,
        "fluency_kind": section.fluency.kind,
        "diversity_tokenizer": section.diversity_tokenizer or base.id,
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
