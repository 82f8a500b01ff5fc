"""The types of the metrics files of the stages ``evaluate``, ``intervene`` and ``capability``, as they are on disk.

    EvaluateMetrics     evaluate/metrics.json
    InterveneMetrics    intervene/metrics.json
    CapabilityMetrics   capability/{model}/metrics.json

The module imports nothing heavy, so that whatever reads metrics can use its types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, get_args

from xgray.stats.values import MetricChange, MetricValue

if TYPE_CHECKING:
    from xgray.evaluate.sweep_file import SweepMetrics

MetricName = Literal["emt", "tox_prob", "avg_tox", "perplexity", "dist_1", "dist_2", "dist_3"]
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
"""The keys of the metrics, in the order of the file and of all tables."""
TOXICITY_METRICS: tuple[MetricName, ...] = ("emt", "tox_prob", "avg_tox")
"""The metrics that are computed from scores."""
DIVERSITY_METRICS: tuple[MetricName, ...] = ("dist_1", "dist_2", "dist_3")
"""Dist-n for n = 1, 2, 3."""


ConsistencyName = Literal["consistent", "unknown", "latin", "emt", "tox_prob", "avg_tox"]
CONSISTENCY_NAMES: tuple[ConsistencyName, ...] = get_args(ConsistencyName)
"""The keys of the measures of language consistency, in the order of the file and of all tables."""


class Bounds(TypedDict):
    """Between which values a metric lies, whatever the missing scores are."""

    low: float
    """Its value if all missing scores were 0."""
    high: float
    """Its value if all missing scores were 1."""


class Quartiles(TypedDict):
    """The quartiles beside a median."""

    lower: MetricValue
    """A quarter of the values lie below."""
    upper: MetricValue
    """A quarter of the values lie above."""


class SampleCounts(TypedDict):
    """How many prompts and completions the metrics of one model rest on."""

    num_prompts: int
    num_asked: int
    """Completions there would be, had no prompt failed: ``num_prompts * k``."""
    num_prompts_scored: int
    """Prompts with at least one scored completion."""
    num_completions: int
    num_scored: int
    """Completions with a score."""
    num_empty: int
    """Completions that are the empty text."""
    num_refused: NotRequired[int]
    """Completions that begin with a set phrase of refusal, a floor; files of earlier versions lack it."""
    num_perplexity: int
    """Completions with a perplexity."""


class SampleMetrics(SampleCounts):
    """One model's metrics and counts in one language, or averaged over languages (counts are then summed)."""

    emt: MetricValue
    """Expected maximum toxicity, in [0, 1]."""
    tox_prob: MetricValue
    """Toxicity probability, in [0, 1]."""
    avg_tox: MetricValue
    """Mean score of all completions, in [0, 1]."""
    perplexity: MetricValue
    """Median perplexity of a completion given its prompt."""
    perplexity_quartiles: NotRequired[Quartiles]
    """Quartiles of the perplexity; missing where it was not measured, and in files of earlier versions."""
    dist_1: MetricValue
    """Distinct unigrams over tokens, averaged over prompts, in [0, 1]."""
    dist_2: MetricValue
    """Distinct bigrams over tokens, averaged over prompts, in [0, 1]."""
    dist_3: MetricValue
    """Distinct trigrams over tokens, averaged over prompts, in [0, 1]."""
    coverage: float | None
    """``num_scored / num_asked``; None where ``num_asked`` is 0."""
    bounds: NotRequired[dict[MetricName, Bounds]]
    """Of EMT, ToxProb and AvgTox; missing where every completion has a score."""


class ModelMetrics(TypedDict):
    """The metrics of one model."""

    languages: dict[str, SampleMetrics]
    """By language code."""
    average: SampleMetrics
    """The mean over languages, each counting the same."""


class ModelComparison(TypedDict):
    """The changes from the base model to one variant."""

    languages: dict[str, dict[MetricName, MetricChange]]
    """By language code and metric."""
    average: dict[MetricName, MetricChange]
    """By metric, the change of the mean over languages."""


class ConsistencyCounts(TypedDict):
    """How many completions are in which language."""

    num_texts: int
    """Completions that hold more than white space: the sum of the next three."""
    num_consistent: int
    """Completions in the language of their prompt."""
    num_other: int
    """Completions in another language."""
    num_unknown: int
    """Completions whose language is unknown."""
    num_latin: int
    """Completions with a word in Latin letters, in the languages that are not written in them."""
    others: dict[str, int]
    """Completions in each other language, by code, the most frequent first."""


class ConsistencyValues(ConsistencyCounts):
    """One model's language consistency in one language, or averaged over languages (counts are then summed)."""

    consistent: MetricValue
    """Share of completions in the language of their prompt, among those whose language is known."""
    unknown: MetricValue
    """Share of completions whose language is unknown, among all that hold text."""
    latin: MetricValue
    """Share of completions with a word in Latin letters; only in languages that are not written in them."""
    emt: MetricValue
    """Expected maximum toxicity of the consistent completions alone: a maximum of fewer than k scores."""
    tox_prob: MetricValue
    """Toxicity probability of the consistent completions alone."""
    avg_tox: MetricValue
    """Mean score of the consistent completions."""


class ModelConsistency(TypedDict):
    """The language consistency of one model."""

    languages: dict[str, ConsistencyValues]
    """By language code."""
    average: ConsistencyValues
    """The mean over languages, each counting the same."""


class ConsistencyComparison(TypedDict):
    """The changes of language consistency from the base model to one variant.

    As in every comparison, EMT and ToxProb of a prompt are, before and after, those of equally many completions, here
    consistent ones, so that a model with fewer of them is not less toxic for that.
    """

    languages: dict[str, dict[ConsistencyName, MetricChange]]
    """By language code and measure."""
    average: dict[ConsistencyName, MetricChange]
    """By measure, the change of the mean over languages."""


class LanguageConsistency(TypedDict):
    """Whether the completions of all models are in the language of their prompts."""

    identifier: str
    """Name and version of what identified languages."""
    min_probability: float
    """A language is known from this probability on."""
    models: dict[str, ModelConsistency]
    """By model."""
    comparisons: dict[str, ConsistencyComparison]
    """By variant; empty without a base model."""
    points: NotRequired[dict[str, ModelConsistency]]
    """By the name of a point of a sweep: means over its seeds; missing without a sweep."""
    point_comparisons: NotRequired[dict[str, ConsistencyComparison]]
    """By the name of a point; missing without a sweep, empty without a base model."""


class Protocol(TypedDict):
    """How the metrics were computed."""

    grouping: str
    """``released`` merges prompts that have the same text, ``corrected`` keeps every prompt by itself."""
    diversity: str
    """``corrected`` or ``released``: how Dist-n tells tokens apart."""
    fluency: str
    """``corrected`` or ``released``: the formula of the perplexity."""
    fluency_model: str
    """Id of the model that measures perplexity."""
    fluency_kind: str
    """``causal``, ``seq2seq`` or ``none``."""
    diversity_tokenizer: str
    """Id of the model whose tokens Dist-n counts."""


class EvaluateSettings(TypedDict):
    """What all metrics of an evaluation have in common."""

    attribute: str
    """The scored attribute, such as ``toxicity``."""
    threshold: float
    """A completion is toxic from this score on."""
    confidence: float
    """Of all intervals; 0.95 for 95 %."""
    resamples: int
    """Bootstrap resamples of what is resampled: retrieval scores and their correlation with the fall of EMT."""
    intervals: NotRequired[str]
    """``errors``: intervals are those of :mod:`xgray.stats.intervals`. Files of earlier versions lack it: theirs are
    percentiles of a bootstrap over prompts, and their tests permutations."""
    protocol: Protocol
    languages: list[str]
    """Codes of the languages that any model has completions in."""
    unvalidated: NotRequired[list[str]]
    """Languages on which the scorer was not validated; the stage adds it."""
    consistency: NotRequired[LanguageConsistency]
    """The language of the completions; the stage adds it. Files of earlier versions lack it."""


class EvaluateMetrics(EvaluateSettings):
    """``evaluate/metrics.json``."""

    models: dict[str, ModelMetrics]
    """By model: ``base`` and the variants' names."""
    comparisons: dict[str, ModelComparison]
    """By variant; empty without a base model."""
    sweep: NotRequired[SweepMetrics]
    """The points of a sweep, each a mean over its seeds; missing where the experiment has none."""


class SettingMetrics(ModelMetrics):
    """The metrics of the base model under one edit of its neurons."""

    offset: float
    """Added to the activations; 0.0 for none."""
    multiplier: float
    """Multiplied with the activations; 1.0 for none."""
    comparison: ModelComparison | None
    """The change from the unedited model; None for the unedited model itself."""


class InterveneMetrics(EvaluateSettings):
    """``intervene/metrics.json``; only ``neurons`` and ``reason`` where there was no neuron to edit."""

    neurons: list[list[int]]
    """The edited neurons, ``[layer, index]`` each."""
    reason: NotRequired[str]
    """Why nothing was measured."""
    decoding: dict[str, Any]
    """The section ``intervene.generate`` of the experiment."""
    settings: dict[str, SettingMetrics]
    """By setting: ``base``, ``offset-5``, ``times0``, ..."""


class TaskMetric(MetricValue):
    """One metric of a task of lm-evaluation-harness."""

    stderr: float | None
    """The harness's standard error."""
    higher_is_better: bool | None
    """None where the harness does not say."""


class TaskSettings(TypedDict):
    """How the harness ran one task."""

    harness: str
    """Version of lm-evaluation-harness."""
    group: str | None
    """The group through which the task was run; None where it was run by its own name."""
    version: Any
    """The task's version."""
    num_fewshot: int | None
    num_questions: int


class TaskMetrics(TaskSettings):
    """What one model reached on one task or group."""

    metrics: dict[str, TaskMetric]
    """By the harness's metric name; after a comma its filter, if there is one."""


class TaskChange(TypedDict):
    """The change of one task's metric from the base model to a variant."""

    difference: float
    low: float | None
    """Lower end of the difference's interval."""
    high: float | None
    """Upper end of the difference's interval."""
    paired: bool
    """Whether the models were compared question by question."""
    p_value: float | None
    """Two-sided; None where it cannot be computed."""
    p_adjusted: float | None
    """The p-value under false-discovery control over all tasks and metrics."""
    significant: bool | None
    """Whether ``p_adjusted`` is below ``1 - confidence``."""


class CapabilityMetrics(TypedDict):
    """``capability/{model}/metrics.json``."""

    harness: str
    """Versions of lm-evaluation-harness, comma-separated."""
    confidence: float
    tasks: dict[str, TaskMetrics]
    comparison: NotRequired[dict[str, dict[str, TaskChange]]]
    """By task and metric; missing in the base model's file."""


class TaskMetricRow(TypedDict):
    """One metric of one task in ``capability/{model}/results/{task}.json``."""

    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    values: list[float] | None
    """The questions' values, in their order, where ``value`` is their mean; otherwise None."""


class TaskRow(TaskSettings):
    """One task or group in ``capability/{model}/results/{task}.json``."""

    task: str
    questions: str | None
    """SHA-256 of all questions with their prompts; None for a group."""
    metrics: dict[str, TaskMetricRow]
