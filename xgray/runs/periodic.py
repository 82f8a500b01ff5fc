"""Doing something again and again, in a thread, while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def run_every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call ``look`` every ``seconds`` while the block runs, first after as many; a call under way is waited for.

    Args:
        look: what it raises ends the watching, not the block.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(seconds):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
