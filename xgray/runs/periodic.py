"""Call a function again and again in a thread, while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def run_every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` every ``seconds`` while the block runs, for the first time after ``seconds``.

    A call that is under way when the block ends is waited for. An exception of ``call`` ends the calls, not the block.
    """
    has_ended = threading.Event()

    def repeat() -> None:
        while not has_ended.wait(seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
