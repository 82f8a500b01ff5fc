"""Log what a stage waits for, because minutes without a line look like a hang."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from xgray.runs.periodic import run_every

log = logging.getLogger(__name__)

FIRST_SECONDS = 30.0
"""Wait before the first line; an ordinary start takes less."""
REPEAT_SECONDS = 300.0
POLL_SECONDS = 5.0


@contextlib.contextmanager
def log_waiting(waiting_for: Callable[[], str | None]) -> Iterator[None]:
    """Log what is waited for while the block runs: after ``FIRST_SECONDS``, and then every ``REPEAT_SECONDS``.

    Args:
        waiting_for: returns what is waited for at the moment, or None; called in a thread.
    """
    due: float | None = None

    def check() -> None:
        nonlocal due
        text, now = waiting_for(), time.monotonic()
        if text is None:
            due = None
        elif due is None:
            due = now + FIRST_SECONDS
        elif now >= due:
            log.warning("%s. To go on with the nodes that are alive, stop and run the same command again.", text)
            due = now + REPEAT_SECONDS

    with run_every(POLL_SECONDS, check):
        yield
