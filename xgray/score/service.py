"""What the scorers that ask a service share: the key, the wait that it names, one task for each text."""

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

MAX_REASON = 300
"""Characters of a service's message that are kept."""


def key_in(variable: str) -> str:
    """The key in an environment variable; empty where there is none.

    Raises:
        InputError: it holds what no HTTP header can carry.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and (not key or key.isprintable())):
        raise InputError(f"{variable} holds characters that no key has; set it again")
    return key


def without_key(line: str, key: str) -> str:
    """A service's message in one line for the user, without the key whatever the service echoes."""
    return " ".join((line.replace(key, "***") if key else line).split())[:MAX_REASON]


def version_at(url: URL, home: str, version: str) -> str:
    """The version of a scorer at an address: elsewhere than at ``home`` the same name may stand for another model."""
    return version if url.host == home else f"{version}@{url.host_port_subcomponent}"


def retry_after_seconds(header: str | None) -> float | None:
    """The wait that a ``Retry-After`` header asks for, in seconds or as a date; None where it says neither."""
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(wait, 0.0) if math.isfinite(wait) else None


def as_score(value: object) -> float | None:
    """The number in [0, 1] that a service's answer holds; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return None


async def score_each(texts: Sequence[str], score_one: Callable[[str], Coroutine[Any, Any, Scored]]) -> list[Scored]:
    """The results of all texts, which are under way together; the first :class:`StageError` ends them all."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score_one(text)) for text in texts]
    except* StageError as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
