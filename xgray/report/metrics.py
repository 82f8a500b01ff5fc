"""The names, explanations and number formats of the metrics, for the report and the command line.

The module imports neither numpy nor matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass

from xgray.evaluate.metrics_file import TOXICITY_METRICS, Bounds, ConsistencyName, MetricName
from xgray.stats.values import MetricValue

MISSING = "–"
"""Printed where there is no value."""
MINUS = "−"

DIVERSITY = "Diversity: distinct n-grams over all tokens of a prompt's k completions, averaged over prompts."


@dataclass(frozen=True)
class Metric:
    """How a metric is named, explained and printed."""

    name: str
    meaning: str = ""
    digits: int = 3
    scale: float = 1
    """The factor from the value in ``metrics.json`` to the printed one: 100 for a share printed in per cent."""
    lower_is_better: bool = True

    @property
    def unit(self) -> str:
        return "%" if self.scale == 100 else ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.unit}".strip()

    def text(self, value: float | None, signed: bool = False) -> str:
        """Return a value as text: ``.512``, ``46.8``, ``−.031``; a dash for None."""
        return number(None if value is None else value * self.scale, self.digits, signed)

    def interval(self, low: float | None, high: float | None, signed: bool = False) -> str:
        """Return an interval as text: ``[.480, .541]``; the empty text where an end is None."""
        return "" if low is None or high is None else f"[{self.text(low, signed)}, {self.text(high, signed)}]"

    def bounds(self, bounds: Bounds | None) -> str:
        """Return bounds as text: ``.480 to .541``; the empty text for None."""
        return "" if bounds is None else f"{self.text(bounds['low'])} to {self.text(bounds['high'])}"

    def with_interval(self, measured: MetricValue) -> str:
        """Return ``value``, ``low`` and ``high`` as text: ``.512 [.480, .541]``."""
        return f"{self.text(measured['value'])} {self.interval(measured['low'], measured['high'])}".strip()


METRICS: dict[MetricName, Metric] = {
    "emt": Metric(
        "EMT",
        "Expected maximum toxicity: the mean, over prompts, of the highest score among a prompt's k completions.",
    ),
    "tox_prob": Metric(
        "ToxProb",
        "The share of prompts with at least one completion whose score reaches the threshold.",
        digits=1,
        scale=100,
    ),
    "avg_tox": Metric("AvgTox", "The mean score of all completions."),
    "perplexity": Metric(
        "PPL",
        "Fluency: the median perplexity of a completion given its prompt, under the measuring model.",
        digits=2,
    ),
    "dist_1": Metric("Dist-1", DIVERSITY, lower_is_better=False),
    "dist_2": Metric("Dist-2", DIVERSITY, lower_is_better=False),
    "dist_3": Metric("Dist-3", DIVERSITY, lower_is_better=False),
}
"""By key, in the order of all tables."""

CONSISTENCY: dict[ConsistencyName, Metric] = {
    "consistent": Metric("In the prompt's language", digits=1, scale=100, lower_is_better=False),
    "unknown": Metric("Language unknown", digits=1, scale=100),
    "latin": Metric("With Latin words", digits=1, scale=100),
    "emt": METRICS["emt"],
    "tox_prob": METRICS["tox_prob"],
    "avg_tox": METRICS["avg_tox"],
}
"""The measures of language consistency, by key. Toxicity is that of the consistent completions."""

TOXICITY = TOXICITY_METRICS
"""The metrics that are computed from scores."""


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Return a number with ``digits`` decimals, from 3 on without a leading zero (``.512``); a dash for None."""
    if value is None:
        return MISSING
    text = f"{abs(value):,.{digits}f}"
    sign = "" if float(text.replace(",", "")) == 0 else MINUS if value < 0 else "+" if signed else ""
    return sign + (text.removeprefix("0") if digits >= 3 else text)


def percent(value: float | None, signed: bool = False) -> str:
    """Return a fraction in per cent: ``97.5 %``; a dash for None."""
    return MISSING if value is None else f"{number(value * 100, 1, signed)} %"


def p_value(value: float | None) -> str:
    """Return a p-value as text: ``.012``, ``<.001``; a dash for None."""
    return "<.001" if value is not None and value < 0.001 else number(value)
