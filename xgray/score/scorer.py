"""What a scorer is: texts of one language in, one score or one reason for its absence each out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xgray.config import Switch
from xgray.rows import AttributeScores

EMPTY = "empty text"
"""The reason why a completion that holds nothing but white space has no score."""


@dataclass(frozen=True)
class Scored:
    """One text's result: scores, or the reason why there are none. Never both, never neither."""

    scores: AttributeScores | None
    error: str | None = None


class Scorer(Protocol):
    name: str
    version: str
    """Changes whenever the same text could get another score."""
    device: str
    """Where the texts are scored: this machine's cores, or the service's host."""

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """One result for each text, in order. ``language`` is a code of :data:`xgray.languages.LANGUAGES`."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What must stand beside every number of this scorer: JSON values only."""
        ...

    async def close(self) -> None:
        """Release connections; the scorer is not used again."""
        ...


def text_to_score(completion: str, empty_text: Switch) -> str | None:
    """The text that is scored for a completion, as UTF-8 can carry it; None where there is nothing to score.

    ``empty_text`` is the switch of the ``score`` section. Halves of surrogate pairs become U+FFFD.
    """
    if empty_text == "released":
        completion = completion or " "
    elif not completion.strip():
        return None
    return completion.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
