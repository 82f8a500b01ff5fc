"""Remove secrets from command lines, messages and logs."""

from __future__ import annotations

import os
import re
from pathlib import Path

SECRET = re.compile(r"(?:^|[-_.])(?:key(?:[-_.]id)?|token|secret|password)$", re.IGNORECASE)
"""Matches names of options and environment variables that hold secrets."""
CREDENTIALS = re.compile(r"(?<=://)(?:(?<!abfs://)(?<!abfss://)[^/@\s]+|[^/@\s:]*:[^/@\s]*)(?=@)")
"""The part before the @ of a URI. On Azure that is the container, and a credential only if it has a colon."""


def redact_argv(argv: list[str]) -> list[str]:
    """Return the command line with ``***`` for values of options that are named like secrets, and as :func:`redact`."""
    redacted: list[str] = []
    is_secret_value = False
    for token in map(redact, argv):
        name, equals, _ = token.partition("=")
        is_secret_option = token.startswith("-") and SECRET.search(name) is not None
        redacted.append("***" if is_secret_value else f"{name}=***" if is_secret_option and equals else token)
        is_secret_value = is_secret_option and not equals
    redacted[:1] = [Path(argv[0]).name] if argv else []
    return redacted


def redact(text: str) -> str:
    """Return the text with ``***`` for the secrets of the environment and for credentials in a URI."""
    for name, value in os.environ.items():
        if len(value) >= 8 and SECRET.search(name):
            text = text.replace(value, "***")
    return CREDENTIALS.sub("***", text)
