import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer

from xgray.score.ngrams import NUM_BUCKETS, inverse_document_frequency, ngram_counts, ngram_features

TEXTS = ["You idiot, you!", "Guten Morgen", "guten guten Tag", "今天天气很好。", ""]


def test_features_are_those_of_scikit_learn():
    features = ngram_features(TEXTS, inverse_document_frequency(ngram_counts(TEXTS)))
    assert features.shape == (len(TEXTS), NUM_BUCKETS)
    counts = ngram_counts(TEXTS)
    counts.data = np.exp(counts.data - 1)
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    assert abs(features - expected).max() < 1e-12
    # Without hashing: similarities of texts are the same, as no two n-grams of these share a bucket.
    whole = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 6), sublinear_tf=True).fit_transform(TEXTS)
    assert (features @ features.T).toarray() == pytest.approx((whole @ whole.T).toarray(), abs=1e-3)


def test_a_text_does_not_depend_on_the_texts_beside_it():
    idf = inverse_document_frequency(ngram_counts(TEXTS))
    together = ngram_features(TEXTS, idf)
    for index, text in enumerate(TEXTS):
        assert (together[index] != ngram_features([text], idf)[0]).nnz == 0
