"""One answer of one scorer to one text: what a score store keeps, and what its files hand in and out.

The key is that of the question (text, language, scorer, version). The attributes are part of the answer, so that a
text archived with six of them answers a request for one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xgray.storage.fingerprint import canonical

KEY_BYTES = 16


@dataclass(frozen=True)
class ScoreEntry:
    key: bytes
    """See :func:`score_keys`."""
    language: str
    """A code of :data:`xgray.languages.LANGUAGES`."""
    scorer: str
    version: str
    """The scorer's."""
    attributes: tuple[str, ...]
    """All that were asked for; one of them that is not in ``scores`` was not measured."""
    scores: dict[str, float]
    """By attribute, each in [0, 1]; empty where there is an error."""
    error: str | None = None
    """Why the text has no score, and never will have one."""
    seconds: float | None = None
    """The time that a service took to answer."""
    date: str | None = None
    """UTC, ``2026-11-05T12:00:00Z``; None where an imported file does not say."""
    text: str | None = None
    """As it was scored; None in a store that may hold no texts."""

    @classmethod
    def of_text(
        cls,
        text: str,
        language: str,
        scorer: str,
        version: str,
        attributes: Sequence[str],
        scores: Mapping[str, float | None],
        error: str | None = None,
        seconds: float | None = None,
        date: str | None = None,
    ) -> ScoreEntry:
        """The entry of a text, with its key and without the attributes that have no number."""
        (key,) = score_keys([text], language, scorer, version)
        measured = {name: float(value) for name, value in scores.items() if value is not None}
        return cls(key, language, scorer, version, tuple(attributes), measured, error, seconds, date, text)

    def row(self) -> bytes:
        """The entry as it is stored: the key, then all else as canonical JSON without what is None."""
        fields = {name: value for name, value in vars(self).items() if name != "key" and value is not None}
        return self.key + canonical(fields).encode("utf-8", "surrogatepass")

    @classmethod
    def of_row(cls, row: bytes) -> ScoreEntry:
        fields = json.loads(row[KEY_BYTES:].decode("utf-8", "surrogatepass"))
        return cls(row[:KEY_BYTES], **{**fields, "attributes": tuple(fields["attributes"])})


def score_keys(texts: Sequence[str], language: str, scorer: str, version: str) -> list[bytes]:
    """The keys of texts as they are scored: 16 bytes of the SHA-256 of ``[text, language, scorer, version]``.

    Any text has one, halves of surrogate pairs included.
    """
    rest = canonical([language, scorer, version])[1:]
    return [
        hashlib.sha256(f"[{canonical(text)},{rest}".encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]
        for text in texts
    ]
