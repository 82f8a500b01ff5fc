"""A scorer that measures nothing: its numbers come from the texts' bytes, to exercise everything around a scorer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from xgray.score.scorer import Scored


class DummyScorer:
    """Scores that mean nothing. It is validated in no language, so every table marks its numbers."""

    name = "dummy"
    version = "1"
    device = "none"
    validated: tuple[str, ...] = ()

    def __init__(self, attributes: tuple[str, ...]) -> None:
        self.attributes = attributes

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return [Scored(dict.fromkeys(self.attributes, zlib.crc32(text.encode()) / 2**32)) for text in texts]

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        return {"scorer": self.name, "version": self.version, "measures": "nothing: numbers made of the texts' bytes"}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
