"""Language consistency of a run's models, with intervals, and toxicity over the consistent completions alone.

    completions ─▶ languages ──▶ shares: consistent, unknown, with Latin words ─┐
    scores ───────────────────▶ EMT, ToxProb, AvgTox of the consistent ones ────┴▶ values and comparisons

The maximum of fewer scores is lower. So where a variant has fewer consistent completions of a prompt than the base
model, the comparison takes, of both, the expected maximum of as many as the one with fewer has, as it does where scores
are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from xgray.config import BASE, Evaluate, SweepPoint
from xgray.evaluate.comparison import AVERAGE, MetricInput, change_over_seeds, metric_by_language
from xgray.evaluate.consistency import (
    MIN_PROBABILITY,
    OTHER_SCRIPTS,
    CompletionLanguages,
    completion_languages,
    identifier_version,
)
from xgray.evaluate.metrics import first_of_each, score_input
from xgray.evaluate.metrics_file import (
    CONSISTENCY_NAMES,
    TOXICITY_METRICS,
    ConsistencyComparison,
    ConsistencyCounts,
    ConsistencyName,
    ConsistencyValues,
    LanguageConsistency,
    ModelConsistency,
)
from xgray.evaluate.rows import LanguageRows, read_language_rows
from xgray.evaluate.sweep import named_groups, values_over_seeds
from xgray.evaluate.toxicity import merge_duplicates
from xgray.languages import LANGUAGES
from xgray.stats.bootstrap import FloatArray
from xgray.stats.intervals import ratio_of
from xgray.stats.values import MetricChange, MetricValue
from xgray.storage.folder import Folder

Inputs = Mapping[ConsistencyName, Mapping[str, MetricInput]]
"""What the measures of one model are computed from, by measure and language."""

_ALL_UNKNOWN = "no completion's language is known"
_NONE_CONSISTENT = "no completion in the prompt's language has a score"


@dataclass(frozen=True)
class IdentifiedRows:
    """One model's completions in one language, with the language that each is in."""

    prompt_ids: list[str]
    items: list[str]
    """The prompts' ids without their language."""
    languages: CompletionLanguages
    keys: list[str]
    """Names of the groups of scores: prompt ids, or the prompts' texts where the protocol groups by text."""
    items_of_keys: list[str]
    """The groups' names without their language."""
    scores: FloatArray
    """The scores of the consistent completions, ``(num_groups, largest k)``; NaN for all others."""


def language_consistency(
    run: Folder,
    models: Sequence[str],
    section: Evaluate,
    *,
    attribute: str = "toxicity",
    sweep: Mapping[str, SweepPoint] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LanguageConsistency:
    """Identify the language of a run's completions, and measure how consistent each model is. Nothing is written.

    Args:
        run: the run's folder, with rows of completions and scores.
        models: names of the models; the variants are compared with ``base`` if it is among them.
        attribute: the scored attribute, one of :data:`xgray.rows.ATTRIBUTES`.
        sweep: the points of the variants that a sweep made; none without a sweep.
        on_progress: called with the number of identified completions, and the number of all.

    Raises:
        InputError: rows are missing or do not fit together.
        StageError: rows of a finished stage are lost.
    """
    rows = {model: read_language_rows(run, model, attribute, with_perplexity=False) for model in models}
    total, done = sum(of.num_completions for by_language in rows.values() for of in by_language.values()), 0
    identified: dict[str, dict[str, IdentifiedRows]] = {model: {} for model in models}
    for model, by_language in rows.items():
        for language, language_rows in by_language.items():
            identified[model][language] = identified_rows(language_rows, language, section)
            done += language_rows.num_completions
            on_progress(done, total)
    languages = [code for code in LANGUAGES if any(code in by_language for by_language in rows.values())]
    found: LanguageConsistency = {
        "identifier": identifier_version(),
        "min_probability": MIN_PROBABILITY,
        "models": {model: _model_consistency([identified[model]], languages, section) for model in models},
        "comparisons": {
            model: _comparison(identified[BASE], [identified[model]], languages, section)
            for model in models
            if model != BASE and BASE in models
        },
    }
    if sweep:
        points = {
            name: [identified[training] for training in group.trainings]
            for name, group in named_groups(sweep, models).items()
        }
        found["points"] = {name: _model_consistency(each, languages, section) for name, each in points.items()}
        found["point_comparisons"] = {
            name: _comparison(identified[BASE], each, languages, section)
            for name, each in points.items()
            if BASE in models
        }
    return found


def identified_rows(rows: LanguageRows, language: str, section: Evaluate) -> IdentifiedRows:
    """Identify the language of one model's completions in one language."""
    languages = completion_languages(rows.completions, language)
    keys, items, scores = rows.prompt_ids, rows.items, np.where(languages.is_consistent, rows.scores, np.nan)
    if section.grouping == "released":
        items = first_of_each(rows.prompts, rows.items)
        keys, scores = merge_duplicates(rows.prompts, scores)
    return IdentifiedRows(rows.prompt_ids, rows.items, languages, keys, items, scores)


def _model_consistency(
    trainings: Sequence[Mapping[str, IdentifiedRows]], languages: Sequence[str], section: Evaluate
) -> ModelConsistency:
    """Return the language consistency of a model, or the mean over several trainings with the sums of the counts."""
    inputs = [_inputs(rows, section) for rows in trainings]
    values = {
        name: _measured([each[name] for each in inputs], _languages_of(name, languages), section.confidence)
        for name in CONSISTENCY_NAMES
    }
    counts = {language: _total([_counts(rows.get(language), language) for rows in trainings]) for language in languages}
    return {
        "languages": {
            language: _values({name: by_language.get(language) for name, (by_language, _) in values.items()}, counted)
            for language, counted in counts.items()
        },
        "average": _values({name: mean for name, (_, mean) in values.items()}, _total(list(counts.values()))),
    }


def _measured(
    trainings: Sequence[Mapping[str, MetricInput]], languages: Sequence[str], confidence: float
) -> tuple[Mapping[str, MetricValue], MetricValue]:
    """Return a measure in each language, and its mean over languages."""
    if len(trainings) == 1:
        return metric_by_language(trainings[0], languages, confidence)
    values = values_over_seeds(trainings, languages, confidence)
    return values, values[AVERAGE]


def _comparison(
    before: Mapping[str, IdentifiedRows],
    trainings: Sequence[Mapping[str, IdentifiedRows]],
    languages: Sequence[str],
    section: Evaluate,
) -> ConsistencyComparison:
    """Compare a model, or the mean over trainings, with the base model on the prompts that all have."""
    base, *after = [_inputs(rows, section) for rows in (before, *trainings)]
    changes = {
        name: change_over_seeds(
            base[name], [each[name] for each in after], _languages_of(name, languages), section.confidence
        )
        for name in CONSISTENCY_NAMES
    }
    by_language: dict[str, dict[ConsistencyName, MetricChange]] = {
        language: {name: of_name[language] for name, (of_name, _) in changes.items() if language in of_name}
        for language in languages
    }
    return {"languages": by_language, "average": {name: mean for name, (_, mean) in changes.items()}}


def _languages_of(name: ConsistencyName, languages: Sequence[str]) -> list[str]:
    """Return the languages that a measure is of."""
    return [language for language in languages if name != "latin" or language in OTHER_SCRIPTS]


def _inputs(rows: Mapping[str, IdentifiedRows], section: Evaluate) -> Inputs:
    of_scores: dict[ConsistencyName, dict[str, MetricInput]] = {
        cast(ConsistencyName, metric): {
            language: score_input(metric, of.keys, of.items_of_keys, of.scores, section.threshold, _NONE_CONSISTENT)
            for language, of in rows.items()
        }
        for metric in TOXICITY_METRICS
    }
    return {**_share_inputs(rows), **of_scores}


def _share_inputs(rows: Mapping[str, IdentifiedRows]) -> dict[ConsistencyName, dict[str, MetricInput]]:
    inputs: dict[ConsistencyName, dict[str, MetricInput]] = {"consistent": {}, "unknown": {}, "latin": {}}
    for language, of_language in rows.items():
        found = of_language.languages
        is_known = found.is_consistent | found.is_other
        shares: dict[ConsistencyName, tuple[FloatArray, FloatArray, str]] = {
            "consistent": (found.is_consistent.sum(axis=1), is_known.sum(axis=1), _ALL_UNKNOWN),
            "unknown": (found.is_unknown.sum(axis=1), found.is_text.sum(axis=1), "all completions are empty"),
            "latin": (found.has_latin.sum(axis=1), found.is_text.sum(axis=1), "all completions are empty"),
        }
        for name, (counted, among, reason) in shares.items():
            kept = np.flatnonzero(among)
            inputs[name][language] = MetricInput(
                [of_language.prompt_ids[row] for row in kept],
                [of_language.items[row] for row in kept],
                (counted[kept].astype(float), among[kept].astype(float)),
                ratio_of,
                reason,
            )
    return inputs


def _counts(rows: IdentifiedRows | None, language: str) -> ConsistencyCounts:
    if rows is None:
        return _total([])
    found = rows.languages
    return {
        "num_texts": int(found.is_text.sum()),
        "num_consistent": int(found.is_consistent.sum()),
        "num_other": int(found.is_other.sum()),
        "num_unknown": int(found.is_unknown.sum()),
        "num_latin": int(found.has_latin.sum()) if language in OTHER_SCRIPTS else 0,
        "others": dict(found.others.most_common()),
    }


def _total(counts: Sequence[ConsistencyCounts]) -> ConsistencyCounts:
    """Return the sums over languages."""
    others: Counter[str] = Counter()
    for of_language in counts:
        others.update(of_language["others"])
    return {
        "num_texts": sum(of_language["num_texts"] for of_language in counts),
        "num_consistent": sum(of_language["num_consistent"] for of_language in counts),
        "num_other": sum(of_language["num_other"] for of_language in counts),
        "num_unknown": sum(of_language["num_unknown"] for of_language in counts),
        "num_latin": sum(of_language["num_latin"] for of_language in counts),
        "others": dict(others.most_common()),
    }


def _values(measured: Mapping[ConsistencyName, MetricValue | None], counts: ConsistencyCounts) -> ConsistencyValues:
    """Return the measures and counts of one model as the file holds them."""
    known = {
        name: value or {"value": None, "low": None, "high": None, "reason": "the language is written in Latin letters"}
        for name, value in measured.items()
    }
    return cast(ConsistencyValues, {**known, **counts})
