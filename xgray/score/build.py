"""From the ``score`` section of an experiment to the scorer it asks for."""

from __future__ import annotations

from xgray.config import Score
from xgray.score.scorer import Scorer


def build_scorer(section: Score) -> Scorer:
    """The scorer of the section, ready to score; fitting or loading what it needs happens here.

    Raises:
        InputError: an attribute is not one that the scorer measures, the labelled data is wrong, or the key is missing.
    """
    if section.scorer == "perspective":
        from xgray.score.perspective import PerspectiveScorer

        return PerspectiveScorer(section)
    from xgray.score.embedding import EmbeddingScorer

    return EmbeddingScorer(section)
