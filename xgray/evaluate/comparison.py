"""Values of metrics by language and averaged over languages, and their changes between models.

    MetricInput: units with the arrays of a statistic ─▶ common units of several models ─▶ estimates ─▶ value, change

Prompts with the same index are translations of each other, and count as one item of an average.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from xgray.evaluate.metrics_file import METRIC_NAMES, MetricName, ModelComparison
from xgray.evaluate.toxicity import common_number
from xgray.stats.bootstrap import FloatArray, adjust_p_values
from xgray.stats.intervals import Comparison, Estimate, Stratum, average_of
from xgray.stats.seeds import mean_over_seeds
from xgray.stats.values import MetricChange, MetricValue


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


def of_metric(inputs: InputsByLanguage, metric: MetricName) -> dict[str, MetricInput]:
    """Return the inputs of one metric, by language."""
    return {language: by_metric[metric] for language, by_metric in inputs.items()}


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
            values[language] = no_value(given.missing_reason if given else "no completions")
            continue
        strata[language] = Stratum(given.statistic(*given.arrays), given.items)
        values[language] = strata[language].estimate.to_dict(confidence)
    if not strata:
        return values, no_value("no language has a value")
    averaged = average_of(list(strata.values())).to_dict(confidence)
    if reason := left_out(strata, languages):
        averaged["reason"] = reason
    return values, averaged


def model_comparison(
    before: InputsByLanguage, trainings: Sequence[InputsByLanguage], languages: Sequence[str], confidence: float
) -> ModelComparison:
    """Compare a model with the base on the prompts that both have, in each language and averaged over languages.

    p-values are adjusted over the languages, separately for each metric. A difference is significant where the
    adjusted value is below ``1 - confidence``. The average is a single test and needs no adjustment.

    Args:
        before: the inputs of the base model.
        trainings: those of the other model, or of several of which the mean is compared, one for each seed.
    """
    changes = {
        metric: change_over_seeds(
            of_metric(before, metric), [of_metric(each, metric) for each in trainings], languages, confidence
        )
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
    return change_over_seeds(before, [after], languages, confidence)


def change_over_seeds(
    before: Mapping[str, MetricInput],
    trainings: Sequence[Mapping[str, MetricInput]],
    languages: Sequence[str],
    confidence: float,
) -> tuple[dict[str, MetricChange], MetricChange]:
    """Return the change from one model to the mean of several, in each language and of the mean over languages.

    Args:
        before: inputs of the metric of the first model, by language.
        trainings: inputs of the metric of each training that is averaged, by language.
    """
    changes: dict[str, MetricChange] = {}
    compared: dict[str, list[Estimate]] = {}
    items: dict[str, list[str]] = {}
    for language in languages:
        given = [inputs[language] for inputs in (before, *trainings) if language in inputs]
        common = common_keys(given) if len(given) > len(trainings) else []
        if common:
            compared[language], items[language] = estimates_of(given, common)
        else:
            changes[language] = _no_change(incomparable_reason(given))
    if not compared:
        return changes, _no_change("no language has a comparison")
    comparisons = {language: _from_first(estimates) for language, estimates in compared.items()}
    p_values = adjust_p_values([comparison.p_value for comparison in comparisons.values()])
    for (language, comparison), p_adjusted in zip(comparisons.items(), p_values, strict=True):
        changes[language] = comparison.to_dict(confidence, p_adjusted)
    mean = _from_first(averages_of(compared, items))
    averaged = mean.to_dict(confidence, mean.p_value)
    if reason := left_out(compared, languages):
        averaged["reason"] = reason
    return {language: changes[language] for language in languages}, averaged


def _from_first(estimates: Sequence[Estimate]) -> Comparison:
    """Return the comparison of the first model with the mean of the others."""
    return Comparison(estimates[0], mean_over_seeds(estimates[1:]))


def compare_inputs(before: MetricInput, after: MetricInput, common: Sequence[str]) -> tuple[Comparison, list[str]]:
    """Return one metric before and after over the prompts of the common keys, and the items of these prompts."""
    (first, second), items = estimates_of((before, after), common)
    return Comparison(first, second), items


def compare_averages(compared: Mapping[str, Comparison], items: Mapping[str, Sequence[str]]) -> Comparison:
    """Return the comparison of the means over languages, of which ``items`` names each language's prompts."""
    first, second = averages_of({code: (each.before, each.after) for code, each in compared.items()}, items)
    return Comparison(first, second)


def estimates_of(
    inputs: Sequence[MetricInput], common: Sequence[str], *, of_equally_many: bool = True
) -> tuple[list[Estimate], list[str]]:
    """Return one metric of several models over the prompts of the common keys, and the items of these prompts.

    Args:
        of_equally_many: whether maxima are those of as many scores of a prompt as all models have.
    """
    rows = []
    for given in inputs:
        row_of = {key: row for row, key in enumerate(given.keys)}
        rows.append([row_of[key] for key in common])
    arrays = [[array[chosen] for array in given.arrays] for given, chosen in zip(inputs, rows, strict=True)]
    shares_number = of_equally_many and inputs[0].is_of_scores
    shared = [common_number(*(scores for scores, *_ in arrays))] if shares_number else []
    estimates = [given.statistic(*chosen, *shared) for given, chosen in zip(inputs, arrays, strict=True)]
    return estimates, [inputs[0].items[row] for row in rows[0]]


def averages_of(estimates: Mapping[str, Sequence[Estimate]], items: Mapping[str, Sequence[str]]) -> list[Estimate]:
    """Return the means over languages of several models, over the same items in the same order.

    Args:
        estimates: by language, one for each model.
        items: the names of each language's prompts.
    """
    return [
        average_of([Stratum(of_model, items[language]) for language, of_model in zip(estimates, models, strict=True)])
        for models in zip(*estimates.values(), strict=True)
    ]


def common_keys(inputs: Sequence[MetricInput]) -> list[str]:
    """Return the keys that all inputs have, in the order of the first; none where several cannot be paired."""
    if len(inputs) > 1 and any(given.unpaired_reason for given in inputs):
        return []
    keys = [set(given.keys) for given in inputs[1:]]
    return [key for key in inputs[0].keys if all(key in others for others in keys)]


def incomparable_reason(inputs: Sequence[MetricInput]) -> str:
    """Return why the inputs have no common keys."""
    unpaired = [given.unpaired_reason for given in inputs if given.unpaired_reason]
    missing = [given.missing_reason for given in inputs if not given.keys]
    return [*unpaired, *missing, "no prompt is in both models"][0]


def no_value(reason: str) -> MetricValue:
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


def left_out(present: Container[str], languages: Sequence[str]) -> str:
    """Return which languages an average leaves out, ``without de fr``; empty where it has all."""
    absent = [language for language in languages if language not in present]
    return f"without {' '.join(absent)}" if absent else ""
