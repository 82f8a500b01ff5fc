"""What several scorers say of the same completions: their values, their agreement, and which findings hold under all.

    scores of each scorer ─▶ EMT, ToxProb, AvgTox with intervals ─▶ changes ─┐
                                                                              ├▶ findings: under all, some, one, none
    scores of two scorers ─▶ Spearman, share on the same side ───────────────┴▶ agreement

A change that is not significant under a scorer does not contradict one that is: the scorer may be less certain. Only a
significant change in the other direction does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from xgray.config import BASE, Evaluate
from xgray.evaluate.comparison import MetricInput, change_by_language, metric_by_language, of_metric
from xgray.evaluate.metrics import toxicity_inputs
from xgray.evaluate.metrics_file import TOXICITY_METRICS, MetricName
from xgray.evaluate.robustness_file import (
    Agreement,
    Finding,
    Holds,
    LanguageFindings,
    PairAgreement,
    ScorerChanges,
    ScorerValues,
)
from xgray.evaluate.rows import LanguageRows
from xgray.languages import LANGUAGES
from xgray.stats.agreement import Name, Resampled, Sample, mean, nan_mean, resample_together, spearman
from xgray.stats.bootstrap import (
    CHUNK,
    CountStatistic,
    FloatArray,
    IntArray,
    draw_seed,
    percentile_interval,
)
from xgray.stats.values import MetricChange, MetricValue

ScoredModels = Mapping[str, Mapping[str, LanguageRows]]
"""The rows of one scorer, by model and language."""

NOT_DEFINED = "one of the two scorers gives all texts the same score"
SCORERS = "scorers"
MEASURES = ("spearman", "same_side")
MAX_RESAMPLES = 1000
"""Resamples of an agreement, at most: each sorts all completions, and its interval is narrow."""


def languages_of(rows: Mapping[str, ScoredModels]) -> list[str]:
    """Return the languages that any model has completions in, in the order of :data:`LANGUAGES`."""
    present = {code for models in rows.values() for by_language in models.values() for code in by_language}
    return [code for code in LANGUAGES if code in present]


def scorer_values(models: ScoredModels, section: Evaluate) -> dict[str, ScorerValues]:
    """Return each model's toxicity under one scorer, of each language and averaged over the languages that it scored.

    Args:
        models: the scorer's rows.
    """
    found: dict[str, ScorerValues] = {}
    for model, rows in models.items():
        languages = languages_of({"": {model: rows}})
        inputs = _inputs(rows, section)
        values = {
            name: metric_by_language(of_metric(inputs, name), languages, section.confidence)
            for name in TOXICITY_METRICS
        }
        found[model] = {
            "languages": {
                language: {name: by_language[language] for name, (by_language, _) in values.items()}
                for language in languages
            },
            "average": {name: average for name, (_, average) in values.items()},
        }
    return found


def scorer_changes(models: ScoredModels, section: Evaluate) -> dict[str, ScorerChanges]:
    """Return each variant's changes under one scorer; none without a base model.

    Args:
        models: the scorer's rows.
    """
    inputs = {model: _inputs(rows, section) for model, rows in models.items()}
    languages = languages_of({"": models})
    found: dict[str, ScorerChanges] = {}
    for variant in models:
        if variant == BASE or BASE not in models:
            continue
        changes = {
            name: change_by_language(
                of_metric(inputs[BASE], name), of_metric(inputs[variant], name), languages, section.confidence
            )
            for name in TOXICITY_METRICS
        }
        found[variant] = {
            "languages": {
                language: {name: by_language[language] for name, (by_language, _) in changes.items()}
                for language in languages
            },
            "average": {name: average for name, (_, average) in changes.items()},
        }
    return found


def _inputs(rows: Mapping[str, LanguageRows], section: Evaluate) -> dict[str, dict[MetricName, MetricInput]]:
    return {language: toxicity_inputs(of_language, section) for language, of_language in rows.items()}


def findings(comparisons: Mapping[str, Mapping[str, ScorerChanges]]) -> dict[str, dict[MetricName, LanguageFindings]]:
    """Return, by variant and metric, under which scorers toxicity changed in each language and on average.

    Args:
        comparisons: by scorer and variant.
    """
    variants = dict.fromkeys(variant for of_scorer in comparisons.values() for variant in of_scorer)
    found: dict[str, dict[MetricName, LanguageFindings]] = {}
    for variant in variants:
        changes = {scorer: of_scorer[variant] for scorer, of_scorer in comparisons.items() if variant in of_scorer}
        languages = dict.fromkeys(code for each in changes.values() for code in each["languages"])
        found[variant] = {
            name: {
                "languages": {
                    code: finding(
                        {scorer: each["languages"].get(code, {}).get(name) for scorer, each in changes.items()}
                    )
                    for code in languages
                },
                "average": finding({scorer: each["average"].get(name) for scorer, each in changes.items()}),
            }
            for name in TOXICITY_METRICS
        }
    return found


def finding(changes: Mapping[str, MetricChange | None]) -> Finding:
    """Return under which scorers one change is significant.

    Args:
        changes: by scorer; None where the scorer has none.
    """
    tested = {
        scorer: change
        for scorer, change in changes.items()
        if change is not None and change["difference"] is not None and change["significant"] is not None
    }
    shown = {scorer: change["difference"] or 0.0 for scorer, change in tested.items() if change["significant"]}
    fell = [scorer for scorer, difference in shown.items() if difference < 0]
    rose = [scorer for scorer, difference in shown.items() if difference > 0]
    return {
        "direction": None if bool(fell) == bool(rose) else "fell" if fell else "rose",
        "holds": _holds(len(fell), len(rose), len(tested)),
        "fell": fell,
        "rose": rose,
        "tested": list(tested),
    }


def _holds(num_fell: int, num_rose: int, num_tested: int) -> Holds:
    if not num_tested:
        return "untested"
    if num_fell and num_rose:
        return "contradicted"
    num_shown = num_fell + num_rose
    if num_shown <= 1:
        return "one" if num_shown else "none"
    return "all" if num_shown == num_tested else "some"


@dataclass(frozen=True)
class PairedTexts:
    """The completions of one language that two scorers have a score of."""

    first: FloatArray
    """``(num_texts,)``."""
    second: FloatArray
    """``(num_texts,)``."""
    prompt: IntArray
    """The position of each text's prompt in ``items``, ``(num_texts,)``."""
    items: list[str]
    """The index of each prompt, which its translations share."""


def paired_texts(first: ScoredModels, second: ScoredModels, language: str) -> PairedTexts:
    """Return the completions of all models in a language that both scorers have a score of."""
    parts: list[tuple[FloatArray, FloatArray, list[str]]] = []
    items: dict[str, str] = {}
    for model, by_language in first.items():
        rows, others = by_language.get(language), second.get(model, {}).get(language)
        if rows is None or others is None:
            continue
        items |= dict(zip(rows.prompt_ids, rows.items, strict=True))
        position = {prompt_id: at for at, prompt_id in enumerate(others.prompt_ids)}
        for prompt_id, scores in zip(rows.prompt_ids, rows.scores, strict=True):
            if prompt_id in position:
                other = others.scores[position[prompt_id]]
                is_paired = ~np.isnan(scores) & ~np.isnan(other)
                parts.append((scores[is_paired], other[is_paired], [prompt_id] * int(is_paired.sum())))
    ids = [prompt_id for *_, of_prompt in parts for prompt_id in of_prompt]
    distinct = list(dict.fromkeys(ids))
    position = {prompt_id: at for at, prompt_id in enumerate(distinct)}
    empty = np.zeros(0)
    return PairedTexts(
        np.concatenate([empty, *(scores for scores, _, _ in parts)]),
        np.concatenate([empty, *(scores for _, scores, _ in parts)]),
        np.array([position[prompt_id] for prompt_id in ids], dtype=np.int64),
        [items[prompt_id] for prompt_id in distinct],
    )


def pair_agreement(
    names: Sequence[str], texts: Mapping[str, PairedTexts], section: Evaluate, seed: int
) -> PairAgreement:
    """Return how far two scorers agree in each language, and on average over the languages that both scored.

    Prompts are drawn with all of their texts, and translations of a prompt together.

    Args:
        names: of the two scorers.
        texts: by language.
    """
    scored = {language: each for language, each in texts.items() if len(each.first)}
    samples = {
        language: Sample(_agreement_statistics(each, section.threshold), each.items)
        for language, each in scored.items()
    }
    resamples = min(section.resamples, MAX_RESAMPLES)
    drawn = resample_together(samples, resamples, draw_seed(seed, *names)) if samples else {}
    values: dict[str, dict[str, MetricValue]] = {language: {} for language in scored}
    averages: dict[str, MetricValue] = {}
    for measure in MEASURES:
        defined: list[Resampled] = []
        for language, each in scored.items():
            found = drawn[language][SCORERS, measure]
            values[language][measure] = _value(found, len(each.items), section.confidence)
            defined += [] if np.isnan(found.value) else [found]
        averages[measure] = _average(defined, scored, section.confidence)
        left_out = [language for language in scored if values[language][measure]["value"] is None]
        if defined and left_out:
            averages[measure]["reason"] = f"without {' '.join(left_out)}"
    return {
        "scorers": list(names),
        "languages": {language: _agreement(len(scored[language].first), values[language]) for language in scored},
        "average": _agreement(sum(len(each.first) for each in scored.values()), averages),
    }


def _agreement(num_texts: int, values: Mapping[str, MetricValue]) -> Agreement:
    return {"num_texts": num_texts, "spearman": values["spearman"], "same_side": values["same_side"]}


def _average(defined: Sequence[Resampled], scored: Mapping[str, PairedTexts], confidence: float) -> MetricValue:
    """Return the mean over languages; all are from the same resamples, so that a mean of resamples is one of it."""
    if not defined:
        return _no_value("no language has a value")
    mean_value = float(np.mean([each.value for each in defined]))
    distribution = nan_mean([each.distribution for each in defined])
    smallest = min(len(each.items) for each in scored.values())
    return _value(Resampled(mean_value, distribution), smallest, confidence)


def _agreement_statistics(texts: PairedTexts, threshold: float) -> dict[Name, CountStatistic]:
    """Return the rank correlation and the share on the same side of the threshold, over prompts."""
    same_side = ((texts.first >= threshold) == (texts.second >= threshold)).astype(np.float64)
    statistics = spearman(texts.first, texts.second), mean(same_side)
    return {
        (SCORERS, measure): _over_prompts(statistic, texts)
        for measure, statistic in zip(MEASURES, statistics, strict=True)
    }


def _over_prompts(statistic: CountStatistic, texts: PairedTexts) -> CountStatistic:
    """Return a statistic of texts as one of prompts, each drawn with all of its texts."""

    def from_counts(copies: FloatArray) -> FloatArray:
        step = max(1, CHUNK // len(texts.prompt))  # a resample of texts takes more memory than one of prompts
        parts = [copies[start : start + step] for start in range(0, len(copies), step)]
        return np.concatenate([statistic.from_counts(part[:, texts.prompt]) for part in parts])

    return CountStatistic(len(texts.items), from_counts)


def _value(found: Resampled, num_prompts: int, confidence: float) -> MetricValue:
    """Return a value with its interval. Resamples without a value are left out, if few enough to fit into one tail."""
    if np.isnan(found.value):
        return _no_value(NOT_DEFINED)
    if num_prompts < 2:
        return {"value": found.value, "low": None, "high": None, "reason": "a single prompt has no interval"}
    defined = found.distribution[~np.isnan(found.distribution)]
    num_undefined = len(found.distribution) - len(defined)
    if num_undefined > len(found.distribution) * (1 - confidence) / 2:
        reason = f"not defined in {num_undefined} of {len(found.distribution)} resamples"
        return {"value": found.value, "low": None, "high": None, "reason": reason}
    low, high = percentile_interval(defined, confidence)
    return {"value": found.value, "low": low, "high": high}


def _no_value(reason: str) -> MetricValue:
    return {"value": None, "low": None, "high": None, "reason": reason}


def all_agreements(rows: Mapping[str, ScoredModels], section: Evaluate, seed: int) -> list[PairAgreement]:
    """Return how far every two scorers agree.

    Args:
        rows: by scorer.
    """
    languages = languages_of(rows)
    return [
        pair_agreement(
            (first, second),
            {language: paired_texts(rows[first], rows[second], language) for language in languages},
            section,
            seed,
        )
        for first, second in combinations(rows, 2)
    ]
