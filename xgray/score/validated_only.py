"""Score only the languages that a scorer was validated in, where several scorers score the same completions.

The first scorer of an experiment has to know all of its languages. Another one leaves out those that it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xgray.config import Score
from xgray.rows import NOT_VALIDATED
from xgray.score.scorer import Scored, Scorer


def scored_languages(scorer: Scorer, section: Score, languages: Sequence[str]) -> list[str]:
    """Return the languages that a scorer scores: the validated ones, or all if the section wants it.

    A language without a calibration cannot be scored, even unvalidated.
    """
    if section.unvalidated_languages and section.calibration is None:
        return list(languages)
    return [language for language in languages if language in scorer.validated]


def limited_scorer(scorer: Scorer, section: Score) -> Scorer:
    """Return a scorer that leaves out the languages that the section does not let it score."""
    if section.unvalidated_languages and section.calibration is None:
        return scorer
    return ValidatedOnly(scorer)


class ValidatedOnly:
    """Another scorer, without the languages that it was not validated in: their texts have no score."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.name = scorer.name
        self.version = scorer.version
        self.device = scorer.device
        self.attributes = scorer.attributes
        self.validated = scorer.validated

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """Return one result for each text; :data:`xgray.rows.NOT_VALIDATED` in a language that is left out."""
        if language not in self.validated:
            return [Scored(None, NOT_VALIDATED)] * len(texts)
        return await self._scorer.score(texts, language)

    def provenance(self) -> dict[str, Any]:
        """Return what the scorer says of itself."""
        return self._scorer.provenance()

    async def close(self) -> None:
        """Close the scorer."""
        await self._scorer.close()
