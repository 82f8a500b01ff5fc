"""Text that came from files and services, made safe to print on a terminal."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal instead of being shown: escape sequences begin with one, and others turn the
direction of the text. Halves of surrogate pairs cannot be printed at all. Tabs and line feeds may stay."""


def printable(text: str) -> str:
    """Return the text with an escape, such as ``\\x1b``, in the place of each character that acts on a terminal."""
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
