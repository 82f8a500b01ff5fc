"""The points of a sweep: the trainings that differ in their seed alone are averaged, and compared with the base model.

    metrics' inputs of each training ─▶ grouped by the values of the sweep without the seed ─▶ mean over seeds, change

A mean over seeds is of the prompts for which all seeds have a value, so that prompts and seeds are crossed; see
:mod:`xgray.stats.seeds`. A point with one seed has the values and intervals that its training has by itself.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from xgray.config import BASE, SweepPoint
from xgray.evaluate.comparison import (
    AVERAGE,
    InputsByLanguage,
    MetricInput,
    averages_of,
    common_keys,
    estimates_of,
    incomparable_reason,
    left_out,
    model_comparison,
    no_value,
    of_metric,
)
from xgray.evaluate.metrics_file import (
    METRIC_NAMES,
    TOXICITY_METRICS,
    Bounds,
    MetricName,
    ModelMetrics,
    SampleCounts,
    SampleMetrics,
)
from xgray.evaluate.sweep_file import PointMetrics, SeedMean, SweepMetrics, part_of_name
from xgray.evaluate.toxicity import average_bounds
from xgray.stats.intervals import Estimate
from xgray.stats.seeds import deviation, mean_over_seeds

SEED = "seed"


@dataclass(frozen=True)
class Group:
    """The trainings of one point."""

    variant: str
    """The variant in the experiment file."""
    values: dict[str, Any]
    """Without the seed."""
    trainings: dict[str, Any]
    """The names of the trainings with their seeds; None where the sweep does not set them."""


def groups_of(points: Mapping[str, SweepPoint]) -> list[Group]:
    """Return the trainings in groups that differ in their seed alone, in the order of each group's first training.

    Args:
        points: by the name of the training.
    """
    groups: dict[str, Group] = {}
    for training, point in points.items():
        values = {name: value for name, value in point.values.items() if name != SEED}
        key = json.dumps([point.variant, values], sort_keys=True)
        group = groups.setdefault(key, Group(point.variant, values, {}))
        group.trainings[training] = point.values.get(SEED)
    return list(groups.values())


def named_groups(points: Mapping[str, SweepPoint], models: Container[str]) -> dict[str, Group]:
    """Return the groups of the trainings that are among the models, by the name of the point."""
    groups = groups_of({name: point for name, point in points.items() if name in models})
    num_variants = len({group.variant for group in groups})
    return {_name(group, num_variants): group for group in groups}


def _name(group: Group, num_variants: int) -> str:
    """Return what tells a point from the others: ``lr 1e-05, German pairs``.

    Args:
        num_variants: how many variants of the experiment file the sweep changes; their names are needed if several.
    """
    parts = [group.variant] if num_variants > 1 or not group.values else []
    return ", ".join([*parts, *(part_of_name(name, value) for name, value in group.values.items())])


def sweep_metrics(
    points: Mapping[str, SweepPoint],
    inputs: Mapping[str, InputsByLanguage],
    models: Mapping[str, ModelMetrics],
    languages: Sequence[str],
    confidence: float,
) -> SweepMetrics:
    """Return the means over seeds of a sweep, and their changes from the base model.

    Args:
        points: by the name of the training, which is that of its model.
        inputs: what the metrics of each model are computed from.
        models: the metrics of each model, whose counts are summed.
    """
    found: list[PointMetrics] = []
    for point_name, group in named_groups(points, models).items():
        trainings = [inputs[name] for name in group.trainings]
        averaged = _averaged_metrics(trainings, [models[name] for name in group.trainings], languages, confidence)
        point: PointMetrics = {
            "languages": averaged["languages"],
            "average": averaged["average"],
            "name": point_name,
            "variant": group.variant,
            "values": group.values,
            "variants": list(group.trainings),
            "seeds": [seed for seed in group.trainings.values() if seed is not None],
        }
        if BASE in inputs:
            point["comparison"] = model_comparison(inputs[BASE], trainings, languages, confidence)
        found.append(point)
    fields = dict.fromkeys(name for point in points.values() for name in point.values if name != SEED)
    return {"fields": list(fields), "points": found}


def _averaged_metrics(
    trainings: Sequence[InputsByLanguage], models: Sequence[ModelMetrics], languages: Sequence[str], confidence: float
) -> ModelMetrics:
    """Return the means over seeds in each language and averaged over languages, and the sums of the counts."""
    values = {
        metric: values_over_seeds([of_metric(each, metric) for each in trainings], languages, confidence)
        for metric in METRIC_NAMES
    }
    return {
        "languages": {
            language: _sample_metrics(
                {metric: of[language] for metric, of in values.items()},
                [each["languages"][language] for each in models],
            )
            for language in languages
        },
        "average": _sample_metrics(
            {metric: of[AVERAGE] for metric, of in values.items()}, [each["average"] for each in models]
        ),
    }


def _sample_metrics(values: Mapping[MetricName, SeedMean], samples: Sequence[SampleMetrics]) -> SampleMetrics:
    names = [name for name in SampleCounts.__annotations__ if all(name in each for each in samples)]
    counts = {name: sum(cast("Any", sample)[name] for sample in samples) for name in names}
    coverage = counts["num_scored"] / counts["num_asked"] if counts["num_asked"] else None
    bounds = [_bounds(sample) for sample in samples]
    is_bounded = any("bounds" in sample for sample in samples) and all(bounds)
    return cast(
        SampleMetrics,
        {**values, **counts, "coverage": coverage, **({"bounds": average_bounds(bounds)} if is_bounded else {})},
    )


def _bounds(sample: SampleMetrics) -> dict[MetricName, Bounds]:
    """Return between which values the toxicity lies: its values where no score is missing; nothing without scores."""
    if "bounds" in sample:
        return sample["bounds"]
    values = {name: sample[name]["value"] for name in TOXICITY_METRICS}
    return {name: {"low": value, "high": value} for name, value in values.items() if value is not None}


def values_over_seeds(
    trainings: Sequence[Mapping[str, MetricInput]], languages: Sequence[str], confidence: float
) -> dict[str, SeedMean]:
    """Return the mean of one metric over seeds, by language and for :data:`AVERAGE`, the mean over languages.

    Args:
        trainings: inputs of the metric of each training, by language.
    """
    values: dict[str, SeedMean] = {}
    estimates: dict[str, list[Estimate]] = {}
    items: dict[str, list[str]] = {}
    for language in languages:
        given = [inputs[language] for inputs in trainings if language in inputs]
        common = common_keys(given) if len(given) == len(trainings) else []
        if common:
            estimates[language], items[language] = estimates_of(given, common, of_equally_many=False)
            values[language] = _seed_mean(estimates[language], confidence)
        else:
            values[language] = _without_estimates(given, len(trainings))
    if not estimates:
        return {**values, AVERAGE: _plain_average([value for value in values.values() if value["by_seed"]])}
    values[AVERAGE] = _seed_mean(averages_of(estimates, items), confidence)
    if reason := left_out(estimates, languages):
        values[AVERAGE]["reason"] = reason
    return values


def _seed_mean(estimates: Sequence[Estimate], confidence: float) -> SeedMean:
    by_seed = [estimate.value for estimate in estimates]
    mean = mean_over_seeds(estimates).to_dict(confidence)
    return {**mean, "by_seed": by_seed, "deviation": deviation(by_seed)}


def _without_estimates(given: Sequence[MetricInput], num_trainings: int) -> SeedMean:
    """Return a mean without an interval, where the trainings' units are not the same ones; no value where one lacks it.

    The groups of the released Dist-n are lines of the file instead of prompts.
    """
    if len(given) < num_trainings:
        return _no_mean("not every seed has completions")
    if not all(each.keys for each in given):
        return _no_mean(incomparable_reason(given))
    by_seed = [each.statistic(*each.arrays).value for each in given]
    return _plain_mean(by_seed, incomparable_reason(given))


def _plain_average(values: Sequence[SeedMean]) -> SeedMean:
    """Return the mean over languages whose means over seeds have no interval."""
    if not values:
        return _no_mean("no language has a value")
    by_seed = np.mean([value["by_seed"] for value in values], axis=0).tolist()
    return _plain_mean(by_seed, values[0].get("reason", ""))


def _plain_mean(by_seed: list[float], reason: str) -> SeedMean:
    return {
        "value": float(np.mean(by_seed)),
        "low": None,
        "high": None,
        "reason": reason,
        "by_seed": by_seed,
        "deviation": deviation(by_seed),
    }


def _no_mean(reason: str) -> SeedMean:
    return {**no_value(reason), "by_seed": [], "deviation": None}
