"""The 17 languages of the paper, and how each of its file formats spells them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from xgray.errors import InputError


@dataclass(frozen=True)
class Language:
    """A language of the paper."""

    code: str
    """The code used in experiment files, rows and run directories: ``zh-hans``."""
    name: str
    """The English name, as the report shows it."""
    rtp_lx: str
    """The code in the file name ``RTP_LX_{code}.json``: ``ZH-Hans``."""
    short: str
    """The code that Perspective and the parallel-prompt files use: ``zh``."""


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("ar", "Arabic", "AR", "ar"),
        Language("cs", "Czech", "CS", "cs"),
        Language("de", "German", "DE", "de"),
        Language("en", "English", "EN", "en"),
        Language("es", "Spanish", "ES", "es"),
        Language("fr", "French", "FR", "fr"),
        Language("hi", "Hindi", "HI", "hi"),
        Language("id", "Indonesian", "ID", "id"),
        Language("it", "Italian", "IT", "it"),
        Language("ja", "Japanese", "JA", "ja"),
        Language("ko", "Korean", "KO", "ko"),
        Language("nl", "Dutch", "NL", "nl"),
        Language("pl", "Polish", "PL", "pl"),
        Language("pt", "Portuguese", "PT", "pt"),
        Language("ru", "Russian", "RU", "ru"),
        Language("sv", "Swedish", "SV", "sv"),
        Language("zh-hans", "Chinese (simplified)", "ZH-Hans", "zh"),
    )
}


SIMPLIFIED_REGIONS = ("zh-cn", "zh-sg")
"""Regions whose Chinese is written in simplified characters; that of other regions is another script."""
REGIONAL = re.compile(r"(?!zh)([a-z]{2})-(?:[a-z]{2}|\d{3})")


def language(code: str) -> Language:
    """Return the language of a code in any of its spellings: ``zh-hans``, ``ZH-Hans``, ``zh``, ``pt-BR`` or ``es_419``.

    Raises:
        InputError: it is the code of none of the 17 languages.
    """
    lowered = code.strip().lower().replace("_", "-")
    if match := REGIONAL.fullmatch(lowered):
        lowered = match[1]
    elif lowered in SIMPLIFIED_REGIONS:
        lowered = "zh-hans"
    for known in LANGUAGES.values():
        if lowered in (known.code, known.rtp_lx.lower(), known.short):
            return known
    near = get_close_matches(lowered, LANGUAGES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown language {code!r}{hint or '.'} Known: {' '.join(LANGUAGES)}")
