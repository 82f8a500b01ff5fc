"""A logistic head on sentence embeddings, fitted on labelled texts of all languages at once.

The fit is reproducible to the bit: it runs on one thread of linear algebra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgray.config import Section, validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder
from xgray.storage.parse import parse_json

INVERSE_STRENGTH = 10**-2.5
"""C, the inverse of the L2 penalty on standardised embeddings.

Cross-validation on the embedded texts prefers ten times as much, with the same AUC on held-out texts. On texts of
another kind (completions of RTP-LX prompts), however, the stronger penalty gives more correct answers at .5.
"""


@dataclass(frozen=True)
class Head:
    """A linear map from an embedding to the logit of toxic."""

    weights: np.ndarray
    """``(dim,)``, float64, for embeddings that are not standardised."""
    intercept: float

    def probabilities(self, embeddings: np.ndarray, texts: Sequence[str], language: str) -> dict[str, np.ndarray]:
        """Return the ``(n,)`` scores by attribute; texts and language do not matter to this head."""
        return {"toxicity": self.toxicity(embeddings)}

    def toxicity(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the ``(n,)`` probabilities of toxic of ``(n, dim)`` embeddings; each is independent of the others."""
        # This is not a matrix product, whose summation order, and so the last bit, may depend on n.
        logits = (embeddings.astype(np.float64) * self.weights).sum(axis=1) + self.intercept
        return np.asarray(1 / (1 + np.exp(-logits)))


class Embedding(Section):
    """The embeddings that a head was fitted on; with others it is useless."""

    engine: str
    """Version of the engine's package."""
    model: str
    """Fingerprint of the engine's weights."""


class FittedHead(Section):
    """A head with the facts to report about it: the content of a head's file."""

    version: str
    """A fingerprint of the weights and the embedding."""
    embedding: Embedding
    facts: dict[str, Any]
    """``auc`` is what :func:`~xgray.stats.auc.auc_by_language` returns; all entries go into the provenance."""
    weights: list[float]
    intercept: float

    @property
    def head(self) -> Head:
        """The weights as arrays."""
        return Head(np.array(self.weights), self.intercept)


def head_version(weights: Sequence[float], intercept: float, embedding: Embedding) -> str:
    """Return the first 12 digits of the fingerprint of a head and its embedding."""
    return fingerprint({**embedding.model_dump(), "weights": list(weights), "intercept": intercept})[:12]


def read_head(path: str, embedding: Embedding, dim: int) -> FittedHead:
    """Return the head in a file that :func:`~xgray.score.embedding.fit_to_file` wrote.

    Args:
        embedding: the installed one, which the head must have been fitted on.
        dim: the number of its dimensions.

    Raises:
        InputError: there is no such file, it holds no head, or the head is for another embedding.
    """
    remedy = "Fit it again: xgray scorer fit DATA --output FILE"
    fitted: FittedHead = validate(FittedHead, _read_values(path, remedy), f"score.head: {path}")
    if fitted.embedding != embedding:
        raise InputError(
            f"score.head: {path} was fitted on another embedding (engine {fitted.embedding.engine}, "
            f"model {fitted.embedding.model[:12]}) than the installed one (engine {embedding.engine}, "
            f"model {embedding.model[:12]}). {remedy}"
        )
    if len(fitted.weights) != dim:
        raise InputError(f"score.head: {path} has {len(fitted.weights)} weights for {dim} dimensions. {remedy}")
    version = head_version(fitted.weights, fitted.intercept, embedding)
    if version != fitted.version:
        raise InputError(
            f"score.head: {path} was changed since it was written: its version is {fitted.version}, that of its "
            f"contents {version}. {remedy}"
        )
    languages = fitted.facts.get("auc")
    if not isinstance(languages, dict) or not languages.keys() <= LANGUAGES.keys():
        raise InputError(f"score.head: {path} does not list in facts.auc the languages it was measured in. {remedy}")
    return fitted


def _read_values(path: str, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a head's file."""
    folder, name = Folder.containing(path)
    try:
        content = folder.read_bytes(name) if folder.exists(name) else None
    except (OSError, ValueError) as error:  # a folder, a failing disk, or a URI of an unknown kind
        raise InputError(f"score.head: cannot read {path}: {str(error).splitlines()[0]}") from None
    if content is None:
        raise InputError(f"score.head: no such file: {path}. {remedy}")
    try:
        values = parse_json(content)
    except ValueError:
        raise InputError(f"score.head: {path} is not JSON. {remedy}") from None
    if not isinstance(values, dict):
        raise InputError(f"score.head: {path} holds no JSON object. {remedy}")
    return values


def fit_head(embeddings: np.ndarray, toxic: np.ndarray) -> Head:
    """Fit a head on ``(n, dim)`` embeddings and their ``(n,)`` labels, in which both classes occur."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    vectors = embeddings.astype(np.float64)
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0) + 1e-12
    model = LogisticRegression(C=INVERSE_STRENGTH, class_weight="balanced", max_iter=1000)
    with threadpool_limits(1):
        model.fit((vectors - mean) / deviation, toxic)
    weights = model.coef_[0] / deviation
    return Head(weights, float(model.intercept_[0] - (mean * weights).sum()))
