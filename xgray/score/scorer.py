"""What a scorer is: texts of one language in, one score or one reason for its absence each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xgray.rows import AttributeScores


@dataclass(frozen=True)
class Scored:
    """One text's result: scores, or the reason why there are none. Never both, never neither."""

    scores: AttributeScores | None
    error: str | None = None


class Scorer(Protocol):
    name: str
    version: str
    """Changes whenever the same text could get another score."""

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """One result for each text, in order. ``language`` is a code of :data:`xgray.languages.LANGUAGES`."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What must stand beside every number of this scorer: JSON values only."""
        ...

    async def close(self) -> None:
        """Release connections; the scorer is not used again."""
        ...
