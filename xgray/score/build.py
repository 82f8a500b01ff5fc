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
        InputError: an attribute is not one that the scorer measures, the labelled data, the head or the model is
            wrong, or the key is missing.
    """
    match section.scorer:
        case "perspective":
            from xgray.score.perspective import PerspectiveScorer

            return PerspectiveScorer(section, pacer)
        case "classifier" | "vllm":
            from xgray.score.classifier import ClassifierScorer

            return ClassifierScorer(section)
        case "openai":
            from xgray.score.openai_compatible import OpenAIScorer

            return OpenAIScorer(section)
        case "embedding":
            from xgray.score.embedding import EmbeddingScorer

            return EmbeddingScorer(section)
