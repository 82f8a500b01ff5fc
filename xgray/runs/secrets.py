"""Remove secrets from command lines, messages and logs."""

from __future__ import annotations

import os
import re
from pathlib import Path

SECRET = re.compile(r"(?:^|[-_.])(?:key(?:[-_.]id)?|token|secret|password)$", re.IGNORECASE)
CREDENTIALS = re.compile(r"(?<=://)(?:(?<!abfs://)(?<!abfss://)[^/@\s]+|[^/@\s:]*:[^/@\s]*)(?=@)")
"""What stands before the @ of a URI; on Azure that is the container, and a credential only where it has a colon."""


def redact_argv(argv: list[str]) -> list[str]:
    """The command line without secrets: values of options that are named like one, and whatever a URI holds of it."""
    cleaned: list[str] = []
    hide = False
    for token in map(redact, argv):
        name, equals, _ = token.partition("=")
        secret = token.startswith("-") and SECRET.search(name) is not None
        cleaned.append("***" if hide else f"{name}=***" if secret and equals else token)
        hide = secret and not equals
    cleaned[:1] = [Path(argv[0]).name] if argv else []
    return cleaned


def redact(text: str) -> str:
    """The text with ``***`` for the secrets of the environment and for credentials in a URI."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET.search(name):
            text = text.replace(value, "***")
    return CREDENTIALS.sub("***", text)
