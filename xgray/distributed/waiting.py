"""Saying what a stage waits for: minutes without a word look like a hang."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from xgray.runs.periodic import run_every

log = logging.getLogger(__name__)

FIRST_SECONDS = 30.0
"""Of waiting before it is said; an ordinary start takes less."""
AGAIN_SECONDS = 300.0
POLL_SECONDS = 5.0


@contextlib.contextmanager
def log_waiting(missing: Callable[[], str | None]) -> Iterator[None]:
    """Log what is waited for while the block runs: after ``FIRST_SECONDS``, and then every ``AGAIN_SECONDS``.

    Args:
        missing: says what is waited for at the moment, or None; called in a thread.
    """
    due: float | None = None

    def look() -> None:
        nonlocal due
        text, now = missing(), time.monotonic()
        if text is None:
            due = None
        elif due is None:
            due = now + FIRST_SECONDS
        elif now >= due:
            log.warning("%s; to go on with the nodes that are there, stop and run the same command again", text)
            due = now + AGAIN_SECONDS

    with run_every(POLL_SECONDS, look):
        yield
