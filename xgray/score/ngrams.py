"""Character n-grams as features: hashed, weighted by TF-IDF, of length 1.

They know the spelling of a swear word, which an embedding of the whole text blurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer

NUM_BUCKETS = 2**18
"""Features; n-grams with the same hash share one."""
LENGTHS = (1, 6)
"""The shortest and the longest n-gram, in characters. They do not cross the borders of words."""


def ngram_counts(texts: Sequence[str]) -> csr_matrix:
    """Return the ``(n, NUM_BUCKETS)`` matrix of ``1 + ln(count)`` of the lower-cased texts' n-grams."""
    counts = _vectorizer().transform([text.lower() for text in texts]).astype(np.float64)
    np.log(counts.data, out=counts.data)
    counts.data += 1
    return counts


def inverse_document_frequency(counts: csr_matrix) -> np.ndarray:
    """Return the ``(NUM_BUCKETS,)`` weights ``ln((1 + n) / (1 + df)) + 1``, as scikit-learn's ``TfidfTransformer``."""
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.asarray(np.log((1 + counts.shape[0]) / (1 + frequency)) + 1)


def ngram_features(texts: Sequence[str], idf: np.ndarray) -> csr_matrix:
    """Return the ``(n, NUM_BUCKETS)`` TF-IDF features of texts, each row of Euclidean length 1 (0 for an empty text).

    Args:
        idf: the weights of the n-grams, from :func:`inverse_document_frequency` of the texts that were fitted on.
    """
    from sklearn.preprocessing import normalize

    features = ngram_counts(texts)
    features.data *= idf[features.indices]
    return normalize(features, copy=False)


@cache
def _vectorizer() -> HashingVectorizer:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        analyzer="char_wb",
        ngram_range=LENGTHS,
        n_features=NUM_BUCKETS,
        norm=None,
        alternate_sign=False,
        lowercase=False,
    )
