"""A logistic head on sentence embeddings, fitted on labelled texts of all languages at once.

The fit is reproducible to the bit: it runs on one thread of linear algebra.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgray.config import Section, validate
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder

INVERSE_STRENGTH = 10**-2.5
"""C, the inverse of the L2 penalty on standardised embeddings.

Cross-validation on the embedded texts prefers ten times as much, for the same AUC on held-out ones; but on texts of
another kind (completions of RTP-LX prompts) the heavier penalty gives more right answers at .5.
"""


@dataclass(frozen=True)
class Head:
    weights: np.ndarray
    """``(dim,)``, float64, for embeddings as they come."""
    intercept: float

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The probability of toxic, ``(n,)``, of each of ``(n, dim)`` embeddings, whatever the others are."""
        # Not a matrix product: its summation order, and so the last bit, may depend on n.
        logits = (embeddings.astype(np.float64) * self.weights).sum(axis=1) + self.intercept
        return np.asarray(1 / (1 + np.exp(-logits)))


class Embedding(Section):
    """What a head was fitted on, and will do for alone."""

    engine: str
    """Version of the engine's package."""
    model: str
    """Fingerprint of the engine's weights."""


class FittedHead(Section):
    """A head with what is to be said of it: what a head's file holds."""

    version: str
    """Of weights and embedding together."""
    embedding: Embedding
    facts: dict[str, Any]
    """``auc`` holds what :func:`~xgray.stats.auc.auc_by_language` gives; the other entries are told as they are."""
    weights: list[float]
    intercept: float

    @property
    def head(self) -> Head:
        return Head(np.array(self.weights), self.intercept)


def head_version(weights: Sequence[float], intercept: float, embedding: Embedding) -> str:
    return fingerprint({**embedding.model_dump(), "weights": list(weights), "intercept": intercept})[:12]


def read_head(path: str, embedding: Embedding, dim: int) -> FittedHead:
    """The head in a file that :func:`~xgray.score.embedding.fit_to_file` wrote.

    Raises:
        InputError: there is no such file, it holds no head, or one for another embedding than this.
    """
    again = "fit it anew: xgray scorer fit DATA --output FILE"
    folder, name = Folder.containing(path)
    try:
        content = folder.read_bytes(name) if folder.exists(name) else None
    except (OSError, ValueError) as error:  # a folder, a disk that fails, a URI of no known kind
        raise InputError(f"score.head: cannot read {path}: {str(error).splitlines()[0]}") from None
    if content is None:
        raise InputError(f"score.head: no such file: {path}; {again}")
    try:
        values = json.loads(content)
    except ValueError:
        raise InputError(f"score.head: {path} is no JSON; {again}") from None
    if not isinstance(values, dict):
        raise InputError(f"score.head: {path} holds no JSON object; {again}")
    fitted: FittedHead = validate(FittedHead, values, f"score.head: {path}")
    if fitted.embedding != embedding:
        raise InputError(
            f"score.head: {path} was fitted on another embedding (engine {fitted.embedding.engine}, "
            f"model {fitted.embedding.model[:12]}) than the one here (engine {embedding.engine}, "
            f"model {embedding.model[:12]}); {again}"
        )
    if len(fitted.weights) != dim:
        raise InputError(f"score.head: {path} has {len(fitted.weights)} weights for {dim} dimensions; {again}")
    if head_version(fitted.weights, fitted.intercept, embedding) != fitted.version:
        raise InputError(f"score.head: {path} was changed since it was written: its version is not its own; {again}")
    languages = fitted.facts.get("auc")
    if not isinstance(languages, dict) or not languages.keys() <= LANGUAGES.keys():
        raise InputError(f"score.head: {path} does not say in facts.auc which languages it was measured in; {again}")
    return fitted


def fit_head(embeddings: np.ndarray, toxic: np.ndarray) -> Head:
    """The head for ``(n, dim)`` embeddings and their ``(n,)`` labels, of which both occur."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    vectors = embeddings.astype(np.float64)
    center, spread = vectors.mean(axis=0), vectors.std(axis=0) + 1e-12
    model = LogisticRegression(C=INVERSE_STRENGTH, class_weight="balanced", max_iter=1000)
    with threadpool_limits(1):
        model.fit((vectors - center) / spread, toxic)
    weights = model.coef_[0] / spread
    return Head(weights, float(model.intercept_[0] - (center * weights).sum()))
