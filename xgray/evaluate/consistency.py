"""Language consistency: whether completions are in the language of their prompt.

A model that stops speaking a language looks less toxic in it. So each completion, as a whole, is identified by
`py3langid` (the naive Bayes classifier over byte n-grams of Lui and Baldwin 2012, "langid.py", with a newer model). It
needs no network. The candidates are the 17 languages and :data:`OTHERS`: languages of large training sets that 20
tokens tell apart from the 17. Nearer relatives are no candidates and count as the language of the 17: Malay as
Indonesian, Slovak as Czech, Danish and Norwegian mostly as Swedish. Chinese is one language in both scripts.

A completion's language is unknown where no candidate is more probable than all others together: in digits, code, names
and a word or two. Unknown completions are counted apart, neither as consistent nor as another language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xgray.languages import LANGUAGES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

BoolArray = npt.NDArray[np.bool_]

OTHERS = ("el", "fa", "fi", "he", "hu", "ro", "th", "tr", "uk", "vi")
"""ISO codes of the candidates that are none of the 17 languages."""
MIN_PROBABILITY = 0.5
"""A language is known from this probability on."""
OTHER_SCRIPTS = ("ar", "hi", "ja", "ko", "ru", "zh-hans")
"""The languages that are not written in Latin letters."""

MAX_CHARACTERS = 10_000
"""Characters of a text that are looked at: the identifier's counters overflow on texts many times as long."""
_NO_LANGUAGE = "zxx"
"""The identifier's code for text that is in no language."""
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|[A-Za-z0-9_.+-]{1,64}@\S+|[@#]\w+")
"""Addresses, user names and hashtags. The part before an @ is bounded: texts without spaces would take hours."""
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]{3,}")


@dataclass(frozen=True)
class CompletionLanguages:
    """What is known of the language of a prompt's completions; each array is ``(num_prompts, largest k)``."""

    is_text: BoolArray
    """Whether there is a completion and it holds more than white space."""
    is_consistent: BoolArray
    """Whether it is in the language of the prompt."""
    is_other: BoolArray
    """Whether it is in another language."""
    has_latin: BoolArray
    """Whether it holds a word in Latin letters."""
    others: Counter[str]
    """How many completions are in each other language, by code."""

    @property
    def is_unknown(self) -> BoolArray:
        """Whether its language is unknown."""
        unknown: BoolArray = self.is_text & ~self.is_consistent & ~self.is_other
        return unknown


def identifier_version() -> str:
    """Return the identifier's name and version, such as ``py3langid 0.4.0``."""
    return f"py3langid {metadata.version('py3langid')}"


def identify(text: str) -> str | None:
    """Return the code of a text's language, one of :data:`~xgray.languages.LANGUAGES` or :data:`OTHERS`.

    Addresses, user names and hashtags are left out. None stands for unknown.
    """
    found, _ = _identifier().classify(_ADDRESS.sub(" ", text[:MAX_CHARACTERS]))
    return _codes().get(found)


def has_latin_word(text: str) -> bool:
    """Whether a text holds at least three Latin letters in a row, outside of addresses, user names and hashtags."""
    return _LATIN_WORD.search(_ADDRESS.sub(" ", text)) is not None


def completion_languages(completions: Sequence[Sequence[str]], language: str) -> CompletionLanguages:
    """Identify the language of every completion.

    Args:
        completions: of each prompt; prompts may have different numbers of them.
        language: the code of the prompts' language.
    """
    shape = len(completions), max(map(len, completions), default=0)
    is_text, is_consistent, is_other, has_latin = (np.zeros(shape, dtype=bool) for _ in range(4))
    others: Counter[str] = Counter()
    for row, texts in enumerate(completions):
        for column, text in enumerate(texts):
            if not text.strip():
                continue
            found = identify(text)
            is_text[row, column] = True
            is_consistent[row, column] = found == language
            has_latin[row, column] = has_latin_word(text)
            if found not in (None, language):
                is_other[row, column] = True
                others[str(found)] += 1
    return CompletionLanguages(is_text, is_consistent, is_other, has_latin, others)


@cache
def _identifier() -> LanguageIdentifier:
    """Load the identifier: about half a second, and 100 MB of memory."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_PROBABILITY)
    identifier.set_languages([*_codes(), _NO_LANGUAGE])
    return identifier


@cache
def _codes() -> dict[str, str]:
    """Return our code of each candidate by the identifier's."""
    return {**{language.short: code for code, language in LANGUAGES.items()}, **{code: code for code in OTHERS}}
