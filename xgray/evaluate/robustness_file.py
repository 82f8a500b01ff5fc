"""What ``robustness/metrics.json`` holds: what several scorers say of the same completions."""

from __future__ import annotations

from typing import Literal, TypedDict

from xgray.evaluate.metrics_file import MetricName
from xgray.stats.values import MetricChange, MetricValue

Direction = Literal["fell", "rose"]

Holds = Literal["all", "some", "one", "none", "contradicted", "untested"]
"""Under which scorers a change is significant: under all that could test it, under several of them, under one alone,
under none. ``contradicted``: it is significant in both directions; ``untested``: no scorer could test it."""


class ScorerFacts(TypedDict):
    """One of the scorers."""

    scorer: str
    """The kind of the scorer, as its rows name it."""
    version: str
    unvalidated: list[str]
    """Languages that it was not validated in and scored all the same."""
    not_scored: list[str]
    """Languages that it left out, because it was not validated in them."""


class ScorerValues(TypedDict):
    """The toxicity of one model under one scorer."""

    languages: dict[str, dict[MetricName, MetricValue]]
    """By language code and metric."""
    average: dict[MetricName, MetricValue]
    """The mean over the languages that the scorer scored, each counting the same."""


class ScorerChanges(TypedDict):
    """The changes of toxicity from the base model to one variant under one scorer."""

    languages: dict[str, dict[MetricName, MetricChange]]
    """By language code and metric; p-values are adjusted over the languages that the scorer scored."""
    average: dict[MetricName, MetricChange]


class Agreement(TypedDict):
    """How far two scorers agree on the completions of all models in one language, or on average over languages."""

    num_texts: int
    """Completions with a score of both."""
    spearman: MetricValue
    """Rank correlation of their scores. The interval comes from resampling prompts with all of their completions."""
    same_side: MetricValue
    """Share of completions that both score on the same side of the threshold."""


class PairAgreement(TypedDict):
    """How far two scorers agree."""

    scorers: list[str]
    """The names of the two."""
    languages: dict[str, Agreement]
    """By language code."""
    average: Agreement
    """The mean over languages, in which translations of a prompt are resampled together."""


class Finding(TypedDict):
    """Under which scorers a change is significant after the correction for the number of languages."""

    direction: Direction | None
    """None where no scorer shows a significant change, or scorers show opposite ones."""
    holds: Holds
    fell: list[str]
    """Scorers under which it fell significantly."""
    rose: list[str]
    """Scorers under which it rose significantly."""
    tested: list[str]
    """Scorers under which both models could be compared."""


class LanguageFindings(TypedDict):
    """The findings of one metric for one variant."""

    languages: dict[str, Finding]
    """By language code."""
    average: Finding


class RobustnessMetrics(TypedDict):
    """``robustness/metrics.json``."""

    attribute: str
    threshold: float
    confidence: float
    resamples: int
    languages: list[str]
    scorers: dict[str, ScorerFacts]
    """By name, in the order of the experiment file; the first one is that of all other tables."""
    models: dict[str, dict[str, ScorerValues]]
    """By scorer and model."""
    comparisons: dict[str, dict[str, ScorerChanges]]
    """By scorer and variant; empty without a base model."""
    agreement: list[PairAgreement]
    """Of every two scorers."""
    findings: dict[str, dict[MetricName, LanguageFindings]]
    """By variant and metric."""
