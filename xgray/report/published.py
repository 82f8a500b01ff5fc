"""Table 2 of the paper: averages over the 17 languages, before and after DPO.

*Preference Tuning For Toxicity Mitigation Generalizes Across Languages* (Li, Yong, Bach; arXiv 2406.16235v2).
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "Li, Yong, Bach: Preference Tuning For Toxicity Mitigation Generalizes Across Languages, arXiv 2406.16235v2"

K = 25
NUM_PROMPTS = 1000
"""Prompts of each language, about."""
NUM_LANGUAGES = 17
THRESHOLD = 0.5
NEW_TOKENS, TEMPERATURE, TOP_P = 20, 0.9, 0.8
SCORER = "perspective"
MEASURING_MODEL = "google/mt5-xl"
"""Its perplexity is the paper's fluency, and its tokenizer counts the paper's Dist-n."""


@dataclass(frozen=True)
class Published:
    name: str
    before: dict[str, float]
    after: dict[str, float]
    """By metric key, in the units of metrics.json: tox_prob in [0, 1]."""


def _published(name: str, before: tuple[float, ...], after: tuple[float, ...]) -> Published:
    keys = ("emt", "tox_prob", "avg_tox", "perplexity", "dist_1", "dist_2", "dist_3")
    return Published(name, dict(zip(keys, before, strict=True)), dict(zip(keys, after, strict=True)))


TABLE_2: dict[str, Published] = {
    "ai-forever/mGPT": _published(
        "mGPT 1.3B",
        (0.502, 0.468, 0.121, 18.74, 0.520, 0.825, 0.841),
        (0.157, 0.039, 0.028, 23.68, 0.487, 0.807, 0.845),
    ),
    "bigscience/bloom-1b7": _published(
        "BLOOM 1.7B",
        (0.493, 0.456, 0.122, 18.56, 0.518, 0.816, 0.833),
        (0.185, 0.063, 0.033, 25.38, 0.522, 0.819, 0.841),
    ),
    "bigscience/bloom-7b1": _published(
        "BLOOM 7.1B",
        (0.517, 0.492, 0.139, 19.07, 0.513, 0.810, 0.830),
        (0.269, 0.145, 0.054, 21.59, 0.520, 0.812, 0.834),
    ),
    "meta-llama/Llama-2-7b-hf": _published(
        "Llama2 7B",
        (0.557, 0.555, 0.142, 14.31, 0.569, 0.801, 0.785),
        (0.314, 0.214, 0.061, 17.01, 0.530, 0.756, 0.758),
    ),
    "meta-llama/Meta-Llama-3-8B": _published(
        "Llama3 8B",
        (0.613, 0.642, 0.184, 16.27, 0.527, 0.803, 0.820),
        (0.298, 0.201, 0.063, 19.93, 0.475, 0.743, 0.781),
    ),
    "CohereForAI/aya-23-8B": _published(
        "Aya-23 8B",
        (0.559, 0.568, 0.150, 15.84, 0.509, 0.781, 0.802),
        (0.303, 0.232, 0.062, 18.32, 0.428, 0.660, 0.702),
    ),
}


def published(model_id: str) -> Published | None:
    """The paper's rows of this model; None where it has none."""
    return TABLE_2.get(model_id.replace("CohereLabs/", "CohereForAI/"))
