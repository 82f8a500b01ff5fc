"""What every reader of an archive returns, and what the caller has to say where the file does not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from xgray.errors import InputError
from xgray.languages import language

ATTRIBUTE_NAMES = (
    "toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat", "sexually_explicit",
    "flirtation", "attack_on_author", "attack_on_commenter", "incoherent", "inflammatory", "likely_to_reject",
    "obscene", "spam", "unsubstantial",
)  # fmt: skip
"""All attributes that Perspective has measured, in lower case."""
EMPTY = "empty text"
NO_SCORE = "no score in the answer"


class ArchivedText(NamedTuple):
    """A text and what Perspective said of it."""

    text: str
    language: str
    """A code of :data:`xgray.languages.LANGUAGES`."""
    scores: dict[str, float]
    """Scores in [0, 1] by attribute, in lower case; at least one."""
    attributes: tuple[str, ...]
    """The attributes that were requested, sorted; those that are not in ``scores`` have no number."""
    model: str | None = None
    """The versions of Google's models where the file names them: ``TOXICITY@6``."""
    scored: str | None = None
    """The date or year of scoring, where the file says it."""


@dataclass(frozen=True)
class ArchiveOptions:
    """What the user says of a file that does not say it itself."""

    languages: tuple[str, ...] = ()
    """The language of the texts; of a table with several columns of texts, one for each."""
    form: str | None = None
    """The form, where it is not to be recognised."""
    scored: str | None = None
    """The date or year of scoring, or ``unknown``."""
    texts: Path | None = None
    """The file of texts that answers belong to."""
    text_columns: tuple[str, ...] = ()
    score_columns: tuple[str, ...] = ()
    """``COLUMN`` or ``ATTRIBUTE=COLUMN``."""
    language_column: str | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    """Readers count here what they leave out, by reason."""

    def language(self, where: str) -> str:
        """Return the code of the one language that the user named.

        Raises:
            InputError: none was named, or several.
        """
        if len(self.languages) != 1:
            raise InputError(f"{where}: the file does not say its language; name it: --language CODE")
        return language(self.languages[0]).code


@lru_cache(maxsize=256)
def known_language(code: str) -> str | None:
    """Return the canonical code of a language, None if it is none of the 17."""
    try:
        return language(code).code
    except InputError:
        return None


def check_scores(scores: dict[str, float], where: str) -> None:
    """Check that scores are numbers in [0, 1].

    Raises:
        InputError: one is not, such as NaN.
    """
    for name, value in scores.items():
        if not 0 <= value <= 1:
            raise InputError(f"{where}: {name} is {value!r}, not a number from 0 to 1")


def check_scored(scored: str | None) -> None:
    """Check a date of scoring.

    Raises:
        InputError: it is neither a year or date nor ``unknown``.
    """
    if scored is not None and not re.fullmatch(r"unknown|20\d\d(-\d\d(-\d\d([T ][\d:.]+Z?)?)?)?", scored):
        raise InputError(f"--scored: {scored!r} is no year or date: 2020, 2020-05, 2020-05-13, or unknown")
