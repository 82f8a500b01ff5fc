"""A logistic head on sentence embeddings: fitted on labelled texts of all languages at once, measured on held-out ones.

The fit is reproducible to the bit: it runs on one thread of linear algebra. What the head is worth is said for each
language: the area under the ROC curve with its interval, and the share of right answers at the threshold .5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgray.config import Section, validate
from xgray.data.labelled import LabelledText
from xgray.errors import InputError
from xgray.languages import LANGUAGES
from xgray.runs import fingerprint
from xgray.storage import Folder

INVERSE_STRENGTH = 10**-2.5
"""C, the inverse of the L2 penalty on standardised embeddings.

Cross-validation on the embedded texts prefers ten times as much, for the same AUC on held-out ones; but on texts of
another kind (completions of RTP-LX prompts) the heavier penalty gives more right answers at .5.
"""
Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


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
    """``auc`` holds what :func:`measured` gives; the other entries are told as they are."""
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
    folder, name = Folder.of(path)
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


def measured(texts: Sequence[LabelledText], probabilities: np.ndarray) -> dict[str, dict[str, Any]]:
    """By language: AUC with its 95 % interval, counts, and the accuracy at the threshold .5, of held-out texts."""
    from sklearn.metrics import roc_auc_score

    found = {}
    for code in dict.fromkeys(one.language for one in texts):
        chosen = np.array([one.language == code for one in texts])
        toxic = np.array([one.toxic for one in texts])[chosen]
        scores = probabilities[chosen]
        num_toxic, num_benign = int(toxic.sum()), int((~toxic).sum())
        auc = float(roc_auc_score(toxic, scores))
        low, high = auc_interval(auc, num_toxic, num_benign)
        found[code] = {
            "auc": auc,
            "low": low,
            "high": high,
            "num_toxic": num_toxic,
            "num_benign": num_benign,
            "accuracy": float(np.mean((scores >= 0.5) == toxic)),
        }
    return found


def auc_interval(auc: float, num_toxic: int, num_benign: int) -> tuple[float, float]:
    """The 95 % score interval of an AUC (Newcombe 2006, Statistics in Medicine 25:559-573, method 5).

    Unlike DeLong's or a bootstrap interval it does not shrink to a point where the AUC is 1.
    """
    from scipy.optimize import brentq

    half = (num_toxic + num_benign) / 2 - 1

    def deviation(true: float) -> float:
        spread = 1 + half * (1 - true) / (2 - true) + half * true / (1 + true)
        return Z * math.sqrt(true * (1 - true) * spread / (num_toxic * num_benign))

    # An AUC of 0 or 1 solves its own equation; the other solution is the end that is looked for.
    step = 1e-9
    low = brentq(lambda true: auc - true - deviation(true), 0.0, auc - step) if auc > step else 0.0
    high = brentq(lambda true: true - auc - deviation(true), auc + step, 1.0) if auc < 1 - step else 1.0
    return float(low), float(high)
