"""What the key ``sweep`` of ``evaluate/metrics.json`` holds: the points of a sweep, each a mean over its seeds."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from xgray.evaluate.metrics_file import ModelComparison, ModelMetrics
from xgray.languages import LANGUAGES
from xgray.stats.values import MetricValue

SOURCES = "languages"
"""The field of ``train`` with the languages of the pairs."""
_SHORT = {"learning_rate": "lr", "beta": "beta", "loss": "loss"}


def part_of_name(field: str, value: Any) -> str:
    """Return what a value of the sweep adds to the names of its points: ``lr 1e-05``, ``from German``."""
    if field == SOURCES:
        return f"from {' and '.join(LANGUAGES[code].name if code in LANGUAGES else code for code in value)}"
    return f"{_SHORT.get(field, field)} {value}"


class SeedMean(MetricValue):
    """The mean of a value over seeds; its interval covers both the prompts and the seeds."""

    by_seed: list[float]
    """The value of each training, in the order of the point's variants; empty where the mean has no value."""
    deviation: float | None
    """The standard deviation between the trainings; None for a single one."""


class PointMetrics(ModelMetrics):
    """One point of a sweep: the trainings that differ in nothing but their seed.

    Values are means over seeds (:class:`SeedMean`), counts are sums.
    """

    name: str
    """What tells it from the other points, the parts divided by commas: ``lr 1e-05, from German``; of a sweep of seeds
    alone the variant's name."""
    variant: str
    """The variant in the experiment file that the sweep changes."""
    values: dict[str, Any]
    """The fields of ``train`` that the sweep sets, but for the seed."""
    variants: list[str]
    """The trainings' names among the models."""
    seeds: list[int]
    """Their seeds; empty where the sweep does not set them."""
    comparison: NotRequired[ModelComparison]
    """The change from the base model to the mean over seeds; missing without a base model.

    EMT and ToxProb of a prompt are those of as many completions as the base model and all seeds have.
    """


class SweepMetrics(TypedDict):
    """The key ``sweep`` of ``evaluate/metrics.json``."""

    fields: list[str]
    """The fields of ``train`` in which points differ, in the order of the section ``sweep``."""
    points: list[PointMetrics]
    """In the order of the experiment's variants."""
