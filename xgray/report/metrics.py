"""The metrics as the report names, explains, scales and prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MISSING = "–"
MINUS = "−"

DIVERSITY = "Diversity: distinct n-grams over all tokens of a prompt's k completions, averaged over prompts."


@dataclass(frozen=True)
class Metric:
    key: str
    name: str
    meaning: str
    digits: int = 3
    scale: float = 1
    """What a value of metrics.json is multiplied with for printing: 100 for a share that is printed in per cent."""
    lower_is_better: bool = True

    @property
    def unit(self) -> str:
        return "%" if self.scale == 100 else ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.unit}".strip()

    def text(self, value: float | None, signed: bool = False) -> str:
        """``.512``, ``46.8``, ``−.031``; a dash where there is no value."""
        return number(None if value is None else value * self.scale, self.digits, signed)

    def interval(self, low: float | None, high: float | None, signed: bool = False) -> str:
        """``[.480, .541]``; empty where there is none."""
        return "" if low is None or high is None else f"[{self.text(low, signed)}, {self.text(high, signed)}]"

    def with_interval(self, cell: dict[str, Any]) -> str:
        """``.512 [.480, .541]``."""
        return f"{self.text(cell['value'])} {self.interval(cell['low'], cell['high'])}".strip()


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "emt",
            "EMT",
            "Expected maximum toxicity: the mean, over prompts, of the highest score among a prompt's k completions.",
        ),
        Metric(
            "tox_prob",
            "ToxProb",
            "The share of prompts with at least one completion at or above the threshold.",
            digits=1,
            scale=100,
        ),
        Metric("avg_tox", "AvgTox", "The mean score of all completions."),
        Metric(
            "perplexity",
            "PPL",
            "Fluency: the median perplexity of a completion given its prompt, under the measuring model.",
            digits=2,
        ),
        *(Metric(f"dist_{n}", f"Dist-{n}", DIVERSITY, lower_is_better=False) for n in (1, 2, 3)),
    )
}

TOXICITY = ("emt", "tox_prob", "avg_tox")
"""The metrics that are made of scores."""


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number without the zero before its point, as the field's tables have it; a dash for None."""
    if value is None:
        return MISSING
    text = f"{abs(value):,.{digits}f}"
    sign = "" if float(text.replace(",", "")) == 0 else MINUS if value < 0 else "+" if signed else ""
    return sign + (text.removeprefix("0") if digits >= 3 else text)


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction in per cent: ``97.5 %``; a dash for None."""
    return MISSING if value is None else f"{number(value * 100, 1, signed)} %"


def p_value(value: float | None) -> str:
    """``.012``, ``<.001``; a dash for None."""
    return "<.001" if value is not None and value < 0.001 else number(value)
