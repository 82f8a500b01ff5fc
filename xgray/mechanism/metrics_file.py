"""The types of the metrics files of the stages that look inside the network, as they are on disk.

    ProbeMetrics         probe/metrics.json
    VectorsMetrics       vectors/metrics.json
    ActivationsMetrics   activations/{model}/metrics.json
    RetrieveMetrics      retrieve/metrics.json
    TransferMetrics      transfer/metrics.json

The module imports nothing heavy, so that whatever reads metrics can use its types. The types of
``intervene/metrics.json`` are in :mod:`xgray.evaluate.metrics_file`, since its content is an evaluation.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from xgray.stats.values import LanguageAuc, MetricValue


class CalibrationBin(TypedDict):
    """The held-out texts whose predicted probability lies in ``[low, high)``."""

    low: float
    high: float
    num_texts: int
    mean_probability: float
    share_toxic: float


class ProbeValidation(TypedDict):
    """How the probe does on held-out texts."""

    num_toxic: int
    num_benign: int
    accuracy: MetricValue
    """With a 95 % Wilson interval."""
    majority: float
    """The accuracy of always answering with the more frequent class."""
    auc: MetricValue
    """With a 95 % score interval."""
    loss: float
    """Mean binary cross-entropy in nats."""
    calibration_error: float
    """Expected calibration error, in [0, 1]."""
    bins: list[CalibrationBin]
    """Bins of equal width, without empty ones."""


class ProbeSettings(TypedDict):
    """What the probe was trained on, and how."""

    data: str
    test: str | None
    protocol: str
    """``corrected`` or ``released``."""
    learning_rate: float
    hidden_size: int
    num_texts: int
    """Comments, training and validation together."""
    num_toxic: int
    num_fit: int
    """Comments that the probe was trained on."""
    num_truncated: int
    """Comments that are longer than the limit."""


class ProbeMetrics(ProbeSettings):
    """``probe/metrics.json``."""

    num_test_left_out: int
    """Test texts that are left out because the probe was trained on them."""
    train_loss: list[float]
    """Mean binary cross-entropy of each epoch, in nats."""
    validation_loss: list[float]
    """The same on the held-out texts after each epoch."""
    epoch: int
    """The epoch whose weights are kept, from 1."""
    validation: ProbeValidation
    transfer: dict[str, LanguageAuc]
    """By language, on the test texts."""


class VectorEntry(TypedDict):
    """One potential source of toxicity."""

    layer: int
    index: int
    cosine: float
    """With the probe."""
    tokens: list[str]
    """The tokens that the value vector promotes, the strongest first."""
    mean_activation: MetricValue
    """Over the greedy tokens after the English prompts."""
    source: bool
    """Whether it is an actual source: its mean activation is above 0."""


class LayerEntry(TypedDict):
    """The value vectors of one layer."""

    num_neurons: int
    mean: float
    """Mean cosine with the probe."""
    max: float
    """Largest cosine with the probe."""
    num_potential: int
    num_sources: int


class Overlap(TypedDict):
    """What two lists of neurons have in common."""

    num_found: int
    num_common: int
    jaccard: float | None
    """Size of the intersection over size of the union; None where both lists are empty."""
    expected: float
    """Expected size of the intersection if the found neurons were drawn at random."""


class GivenOverlaps(TypedDict):
    """The overlap of the neurons listed in the experiment file with those found."""

    num_given: int
    potential: Overlap
    sources: Overlap


class VectorsMetrics(TypedDict):
    """``vectors/metrics.json``."""

    sources: list[list[int]]
    """The actual sources, ``[layer, index]`` each."""
    num_neurons: int
    """Neurons of all the model's MLPs."""
    num_prompts: int
    new_tokens: int
    confidence: float
    resamples: NotRequired[int]
    """Bootstrap resamples, in files of earlier versions."""
    vectors: list[VectorEntry]
    """The potential sources, the highest cosine first."""
    layers: list[LayerEntry]
    given: GivenOverlaps | None
    """None where the experiment file lists no neurons."""


class NeuronMeans(TypedDict):
    """Mean activations in one language, or averaged over languages (counts are then summed)."""

    mean: MetricValue
    """Over neurons and prompts, with an interval over prompts."""
    neurons: list[float]
    """Each neuron's mean over prompts."""
    num_prompts: int
    num_tokens: int


class ActivationChange(TypedDict):
    """The change of the mean activation from the base model to a variant."""

    difference: float
    low: float | None
    """Lower end of the difference's interval."""
    high: float | None
    """Upper end of the difference's interval."""
    p_value: float
    """Two-sided, of a paired test over prompts."""
    p_adjusted: float
    """The p-value under false-discovery control over the languages; of the average, the p-value itself."""
    significant: bool


class ActivationChanges(TypedDict):
    """The changes from the base model to one variant."""

    languages: dict[str, ActivationChange]
    average: ActivationChange


class ActivationMeans(TypedDict):
    """The mean activations of one model."""

    languages: dict[str, NeuronMeans]
    average: NeuronMeans


class ActivationsMetrics(ActivationMeans):
    """``activations/{model}/metrics.json``; only ``neurons`` and ``reason`` where there was no neuron to measure."""

    neurons: list[list[int]]
    """The measured neurons, ``[layer, index]`` each."""
    reason: NotRequired[str]
    """Why nothing was measured."""
    new_tokens: int
    confidence: float
    change: NotRequired[ActivationChanges]
    """Missing in the base model's file."""


class LayerCurve(TypedDict):
    """A retrieval score of each layer, ``(num_layers,)``, with its interval over prompts."""

    value: list[float]
    low: list[float]
    high: list[float]


class RetrievalScore(TypedDict):
    """A retrieval score averaged over prompts and layers, with its interval over prompts."""

    value: float
    low: float
    high: float
    layers: LayerCurve


RetrievalScores = dict[str, RetrievalScore]
"""By metric; see :data:`xgray.mechanism.retrieval.scores.METRICS`."""
EntityVersion = Literal["corrected", "released"]
"""HTML entities in the prompts: repaired, or as the files have them."""


class TextCounts(TypedDict):
    """What was encoded of one language."""

    num_texts: int
    """Distinct texts, both versions together."""
    num_tokens: int
    num_truncated: int
    num_with_entities: int
    """Prompts that differ between the two versions."""


class RetrieveMetrics(TypedDict):
    """``retrieve/metrics.json``."""

    pivot: str
    """The language against which all others are measured."""
    entities: EntityVersion
    """The version of the prompts that stands first in the report."""
    num_prompts: int
    num_layers: int
    """With the embeddings."""
    num_neighbors: int
    """k of the ratio margin."""
    confidence: float
    resamples: NotRequired[int]
    """Bootstrap resamples, in files of earlier versions."""
    texts: dict[str, TextCounts]
    """By language, the pivot among them."""
    languages: dict[str, dict[EntityVersion, RetrievalScores]]
    """By language, without the pivot."""
    average: dict[EntityVersion, RetrievalScores]
    """The mean over languages, each counting the same."""


class CorrelationValue(TypedDict):
    """A correlation with its interval over languages and its two-sided p-value of a permutation test."""

    value: float
    low: float
    high: float
    p_value: float


class Correlation(TypedDict):
    """How a retrieval score and the relative fall of EMT go together over languages."""

    pearson: CorrelationValue | None
    spearman: CorrelationValue | None
    slope: float | None
    """Of the least-squares line of the fall over the score."""
    intercept: float | None
    prediction_error: float | None
    """Mean absolute error of a language's fall predicted by the line of the other languages."""
    prediction_error_of_mean: float | None
    """The same, predicted by the mean fall of the other languages."""
    verdict: Literal["survives", "reversed", "unclear", "untested"]
    """See :func:`xgray.mechanism.retrieval.correlation.correlate`."""
    reason: NotRequired[str]
    """Why there is no correlation."""


class VariantTransfer(TypedDict):
    """One variant's relative falls of EMT against every definition of the retrieval score."""

    languages: dict[str, float]
    """Relative fall of EMT by language, ``1 - after / before``."""
    missing: dict[str, str]
    """Why a language has no pair of values."""
    definitions: dict[str, dict[EntityVersion, Correlation]]
    """By definition of the score and version of the prompts."""
    statement: str
    """The result in words."""


class TransferMetrics(TypedDict):
    """``transfer/metrics.json``."""

    pivot: str
    confidence: float
    resamples: int
    variants: dict[str, VariantTransfer]
