"""Helpers of the scorers that send texts to a service: the key, the wait that it asks for, one task per text."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from yarl import URL

from xgray.errors import InputError, StageError
from xgray.score.scorer import Scored

MAX_WAIT_SECONDS = 366 * 86_400.0
MAX_REASON = 300
"""Characters of a service's message that are kept."""


def read_key(variable: str) -> str:
    """Return the key in an environment variable; empty if there is none.

    Raises:
        InputError: the key has characters that an HTTP header cannot carry.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and (not key or key.isprintable())):
        raise InputError(f"{variable} holds characters that are not allowed in a key. Set it again")
    return key


def redact_key(message: str, key: str) -> str:
    """Return a service's message as one line, with stars in place of the key, which services may echo."""
    return " ".join((message.replace(key, "***") if key else message).split())[:MAX_REASON]


def version_at(url: URL, home: str, version: str) -> str:
    """Return the version of a scorer at an address.

    At an address other than ``home`` the same name may stand for another model, so the address is part of the version.
    """
    return version if url.host == home else f"{version}@{url.host_port_subcomponent}"


def retry_after_seconds(header: str | None) -> float | None:
    """Return the wait that a ``Retry-After`` header asks for, in seconds or as a date; None if it says neither.

    A wait of more than ``MAX_WAIT_SECONDS`` is no answer of a service, but a fault of it: None too.
    """
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(wait, 0.0) if math.isfinite(wait) and wait <= MAX_WAIT_SECONDS else None


def as_score(value: object) -> float | None:
    """Return the number in [0, 1] that a service's answer holds; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return None


async def score_each(texts: Sequence[str], score_text: Callable[[str], Coroutine[Any, Any, Scored]]) -> list[Scored]:
    """Score all texts concurrently and return the results in order.

    Raises:
        StageError: the first that a text raises; the other texts are cancelled.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score_text(text)) for text in texts]
    except* StageError as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
