"""The 17 languages of the paper, and how each of its file formats spells them."""

from __future__ import annotations

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


def language(code: str) -> Language:
    """Return the language of a code in any of its spellings: ``zh-hans``, ``ZH-Hans`` or ``zh``.

    Raises:
        InputError: it is the code of none of the 17 languages.
    """
    lowered = code.lower()
    for known in LANGUAGES.values():
        if lowered in (known.code, known.rtp_lx.lower(), known.short):
            return known
    near = get_close_matches(lowered, LANGUAGES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"unknown language {code!r}{hint or '.'} Known: {' '.join(LANGUAGES)}")
