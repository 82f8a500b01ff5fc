"""One answer of a scorer to a text: what a score store keeps and what its import and export files carry.

An entry's key is made of the text, the language, the scorer and its version. The attributes are part of the answer, so
that a text stored with six attributes answers a request for one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from json.encoder import encode_basestring

import msgspec

from xgray.score.scorer import Scored, ScorerId
from xgray.storage.fingerprint import canonical

KEY_BYTES = 16
SMALLEST_PLAIN = 1e-4
"""The smallest number that Python's JSON writes without an exponent."""
_SCORES = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True)
class ScoreEntry:
    """A text's scores by one scorer, or the reason why it has none."""

    key: bytes
    """See :func:`score_keys`."""
    language: str
    """A code of :data:`xgray.languages.LANGUAGES`."""
    scorer: str
    version: str
    """The scorer's version."""
    attributes: tuple[str, ...]
    """The attributes that were requested; those that are not in ``scores`` were not measured."""
    scores: dict[str, float]
    """Scores in [0, 1] by attribute; empty if there is an error."""
    error: str | None = None
    """Why the text permanently has no score."""
    seconds: float | None = None
    """How long a service took to answer."""
    date: str | None = None
    """When it was scored, in UTC: ``2026-11-05T12:00:00Z``, or ``2020`` where an imported file's user knows the year
    only; None if nobody says."""
    text: str | None = None
    """The text as it was scored; None in a store that may not hold texts."""

    @classmethod
    def of_text(
        cls,
        text: str,
        language: str,
        scorer: ScorerId,
        attributes: Sequence[str],
        scored: Scored,
        date: str | None = None,
    ) -> ScoreEntry:
        """Return the entry of a text's result. Attributes without a number are left out of its scores."""
        (key,) = score_keys([text], language, scorer)
        scores = {name: float(value) for name, value in (scored.scores or {}).items() if value is not None}
        return cls(
            key=key,
            language=language,
            scorer=scorer.name,
            version=scorer.version,
            attributes=tuple(attributes),
            scores=scores,
            error=scored.error,
            seconds=scored.seconds,
            date=date,
            text=text,
        )

    def row(self) -> bytes:
        """Return the stored form: the key, then the other fields that are not None as canonical JSON."""
        fields = {name: value for name, value in vars(self).items() if name != "key" and value is not None}
        return self.key + canonical(fields).encode("utf-8", "surrogatepass")

    @classmethod
    def from_row(cls, row: bytes) -> ScoreEntry:
        """Return the entry of a stored row."""
        fields = json.loads(row[KEY_BYTES:].decode("utf-8", "surrogatepass"))
        return cls(row[:KEY_BYTES], **{**fields, "attributes": tuple(fields["attributes"])})


def archived_row(
    text: str,
    language: str,
    scorer: ScorerId,
    attributes: tuple[str, ...],
    scores: dict[str, float],
    date: str | None,
) -> bytes:
    """Return the stored form of a text's scores, as :meth:`ScoreEntry.row` does, in a third of the time.

    Imports write millions of rows in which only the text and the scores differ, so the rest is formatted once.
    """
    head, tail = _frame(language, scorer, attributes, date)
    content = encode_basestring(text)
    key = hashlib.sha256(f"[{content},{_after_text(language, scorer)}".encode("utf-8", "surrogatepass")).digest()
    row = f'{head}{_scores_json(scores)},"text":{content}{tail}'
    return key[:KEY_BYTES] + row.encode("utf-8", "surrogatepass")


def _scores_json(scores: dict[str, float]) -> str:
    """Return the canonical JSON of scores. msgspec is ten times as fast, and writes smaller numbers in another way."""
    if min(scores.values()) < SMALLEST_PLAIN:
        return canonical(scores)
    return _SCORES.encode(scores).decode()


@lru_cache(maxsize=256)
def _frame(language: str, scorer: ScorerId, attributes: tuple[str, ...], date: str | None) -> tuple[str, str]:
    """Return the canonical JSON of an entry before its scores, and after its text."""
    before = {"attributes": attributes, "date": date, "language": language, "scorer": scorer.name}
    head = canonical({name: value for name, value in before.items() if value is not None})
    return f'{head[:-1]},"scores":', f',"version":{canonical(scorer.version)}}}'


@lru_cache(maxsize=256)
def _after_text(language: str, scorer: ScorerId) -> str:
    """Return the end of the JSON that a key is made of."""
    return canonical([language, scorer.name, scorer.version])[1:]


def score_keys(texts: Sequence[str], language: str, scorer: ScorerId) -> list[bytes]:
    """Return the keys of texts: the first 16 bytes of the SHA-256 of ``[text, language, scorer, version]`` as JSON.

    Every text has a key, also one with halves of surrogate pairs.
    """
    rest = _after_text(language, scorer)
    return [
        hashlib.sha256(f"[{canonical(text)},{rest}".encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]
        for text in texts
    ]
