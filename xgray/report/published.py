"""The numbers of the paper that the report shows beside those of a run, each by the id of its model.

*Preference Tuning For Toxicity Mitigation Generalizes Across Languages* (Li, Yong, Bach; arXiv 2406.16235v2). Before
and after are before and after DPO. Shares are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xgray.evaluate.metrics_file import METRIC_NAMES, MetricName

PAPER = "Li, Yong, Bach: Preference Tuning For Toxicity Mitigation Generalizes Across Languages, arXiv 2406.16235v2"

MGPT = "ai-forever/mGPT"
BLOOM_1B = "bigscience/bloom-1b7"
BLOOM_7B = "bigscience/bloom-7b1"
LLAMA_2 = "meta-llama/Llama-2-7b-hf"
LLAMA_3 = "meta-llama/Meta-Llama-3-8B"
AYA = "CohereForAI/aya-23-8B"

K = 25
"""Completions of each prompt."""
NUM_PROMPTS = 1000
"""Prompts of each language, about."""
NUM_LANGUAGES = 17
THRESHOLD = 0.5
NEW_TOKENS, TEMPERATURE, TOP_P = 20, 0.9, 0.8
SCORER = "perspective"
MEASURING_MODEL = "google/mt5-xl"
"""Measures the paper's perplexity; its tokenizer counts the paper's Dist-n."""


@dataclass(frozen=True)
class TableRow:
    """A model's rows of Table 2."""

    name: str
    """The model's name in the paper."""
    before: Mapping[MetricName, float]
    after: Mapping[MetricName, float]


def _row(name: str, before: tuple[float, ...], after: tuple[float, ...]) -> TableRow:
    """Return a row from its values in the order of :data:`~xgray.evaluate.metrics_file.METRIC_NAMES`."""
    return TableRow(name, dict(zip(METRIC_NAMES, before, strict=True)), dict(zip(METRIC_NAMES, after, strict=True)))


TABLE_2: dict[str, TableRow] = {
    MGPT: _row(
        "mGPT 1.3B",
        (0.502, 0.468, 0.121, 18.74, 0.520, 0.825, 0.841),
        (0.157, 0.039, 0.028, 23.68, 0.487, 0.807, 0.845),
    ),
    BLOOM_1B: _row(
        "BLOOM 1.7B",
        (0.493, 0.456, 0.122, 18.56, 0.518, 0.816, 0.833),
        (0.185, 0.063, 0.033, 25.38, 0.522, 0.819, 0.841),
    ),
    BLOOM_7B: _row(
        "BLOOM 7.1B",
        (0.517, 0.492, 0.139, 19.07, 0.513, 0.810, 0.830),
        (0.269, 0.145, 0.054, 21.59, 0.520, 0.812, 0.834),
    ),
    LLAMA_2: _row(
        "Llama2 7B",
        (0.557, 0.555, 0.142, 14.31, 0.569, 0.801, 0.785),
        (0.314, 0.214, 0.061, 17.01, 0.530, 0.756, 0.758),
    ),
    LLAMA_3: _row(
        "Llama3 8B",
        (0.613, 0.642, 0.184, 16.27, 0.527, 0.803, 0.820),
        (0.298, 0.201, 0.063, 19.93, 0.475, 0.743, 0.781),
    ),
    AYA: _row(
        "Aya-23 8B",
        (0.559, 0.568, 0.150, 15.84, 0.509, 0.781, 0.802),
        (0.303, 0.232, 0.062, 18.32, 0.428, 0.660, 0.702),
    ),
}
"""Averages over the 17 languages."""

TABLE_3: dict[str, dict[str, tuple[float, float]]] = {
    BLOOM_7B: {
        "arc_vi": (0.3368, 0.3393),
        "hellaswag_vi": (0.4737, 0.4730),
        "m_mmlu_vi": (0.2803, 0.2848),
        "arc_ru": (0.2746, 0.2814),
        "hellaswag_ru": (0.3260, 0.3284),
        "m_mmlu_ru": (0.2709, 0.2759),
        "arc_hi": (0.2937, 0.2979),
        "hellaswag_hi": (0.3635, 0.3646),
        "m_mmlu_hi": (0.2755, 0.2750),
        "arc_zh": (0.3718, 0.3778),
        "hellaswag_zh": (0.5017, 0.5077),
        "m_mmlu_zh": (0.2904, 0.2947),
    }
}
"""Accuracy before and after, by the harness's name of the task."""

FIGURE_2: dict[str, dict[float, float]] = {MGPT: {0.0: 0.175, -5.0: 0.032}}
"""AvgTox over the 17 languages by the offset of the source neurons, under greedy decoding."""

FIGURE_3: dict[str, dict[str | None, tuple[float, float]]] = {
    MGPT: {
        None: (0.0524, -0.0108),
        "en": (0.1040, -0.0047),
        "de": (0.0814, -0.0027),
        "zh-hans": (0.0594, 0.0138),
        "ko": (0.0297, -0.0193),
        "cs": (-0.0187, -0.0270),
    }
}
"""Mean activation of the source neurons over 20 greedy tokens before and after, by language; None is the average over
the 17 languages. These are the values that the text to Figure 3 states."""

FIGURE_4: dict[str, float] = {MGPT: 0.732, BLOOM_1B: 0.59, BLOOM_7B: 0.66, LLAMA_2: 0.78}
"""Pearson's r between the relative fall of EMT and the retrieval score: the mean cosine, HTML entities left in."""
FIGURE_4_NUM_LANGUAGES = 16


@dataclass(frozen=True)
class Probe:
    """How well a model's probe does on Jigsaw."""

    validation_accuracy: float
    test_auc: float


PROBES: dict[str, Probe] = {MGPT: Probe(validation_accuracy=0.9431, test_auc=0.862)}


@dataclass(frozen=True)
class Sources:
    """The neurons found in a model."""

    num_sources: int
    """Actual sources of toxicity."""
    num_neurons: int
    """All neurons of the MLPs: 24 layers of 8,192."""


SOURCES: dict[str, Sources] = {MGPT: Sources(num_sources=36, num_neurons=196_608)}


def table_2_row(model_id: str) -> TableRow | None:
    """Return a model's rows of Table 2, None where the paper has none. Aya is found under both its organisations."""
    return TABLE_2.get(model_id.replace("CohereLabs/", "CohereForAI/"))
