"""The types of values, changes and AUCs as metrics files hold them. Imports nothing heavy."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class MetricValue(TypedDict):
    """A value with its confidence interval."""

    value: float | None
    """None where nothing could be computed."""
    low: float | None
    """Lower end of the interval; None where there is no interval."""
    high: float | None
    """Upper end of the interval."""
    reason: NotRequired[str]
    """Why there is no value or no interval, or which languages an average leaves out."""


class MetricChange(TypedDict):
    """The change of a value from one model to another on the same prompts, ``after - before``."""

    before: NotRequired[MetricValue]
    """The value before, over the compared prompts; missing where nothing could be compared."""
    after: NotRequired[MetricValue]
    """The value after, over the same prompts."""
    difference: float | None
    """``after - before``; None where nothing could be compared."""
    low: float | None
    """Lower end of the interval of the difference."""
    high: float | None
    """Upper end of the interval of the difference."""
    relative_change: float | None
    """``after / before - 1``; None also where the value before is 0."""
    relative_low: float | None
    """Lower end of the interval of the relative change; None also where the value before may be 0."""
    relative_high: float | None
    """Upper end of the interval of the relative change."""
    p_value: float | None
    """Two-sided, of a paired test over prompts: below ``1 - confidence`` where the interval excludes 0."""
    p_adjusted: float | None
    """The p-value under false-discovery control over the languages; of an average, the p-value itself."""
    significant: bool | None
    """Whether ``p_adjusted`` is below ``1 - confidence``."""
    detectable: NotRequired[float | None]
    """The least difference that a single test of these prompts finds with a probability of 80 %; files of earlier
    versions lack it."""
    reason: NotRequired[str]
    """Why there is no difference, or which languages an average leaves out."""


class LanguageAuc(TypedDict):
    """How well scores tell toxic from benign texts in one language."""

    auc: float | None
    """Area under the ROC curve; None where one of the two classes is missing."""
    low: float | None
    """Lower end of the AUC's 95 % interval."""
    high: float | None
    """Upper end of the AUC's 95 % interval."""
    reason: NotRequired[str]
    """Why there is no AUC."""
    num_toxic: int
    num_benign: int
    accuracy: float
    """Share of texts that the threshold sorts correctly."""
