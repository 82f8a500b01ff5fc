"""From the ``score`` section of an experiment to the scorer it asks for."""

from __future__ import annotations

from xgray.config import Score
from xgray.score.quota import Pacer
from xgray.score.scorer import Scorer


def build_scorer(section: Score, pacer: Pacer | None = None) -> Scorer:
    """The scorer of the section, ready to score; fitting or loading what it needs happens here.

    Args:
        pacer: for a remote scorer, the quota that it shares with others; by default one of its own.

    Raises:
        InputError: an attribute is not one that the scorer measures, the labelled data is wrong, or the key is missing.
    """
    if section.scorer == "perspective":
        from xgray.score.perspective import PerspectiveScorer

        return PerspectiveScorer(section, pacer)
    from xgray.score.embedding import EmbeddingScorer

    return EmbeddingScorer(section)
