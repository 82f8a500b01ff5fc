"""Being told to stop: Ctrl-C, or the SIGTERM that comes before a machine is taken away.

Both become a KeyboardInterrupt in the main thread, so that every ``with`` and ``finally`` on the way is gone through.
While a stage commits block by block, SIGTERM waits a moment first: the main thread takes nothing more, and what other
processes finish in that time is on disk. A second signal leaves at once; the same command resumes either way.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

GRACE_SECONDS = 2.0
"""Of the three that ``ray job stop`` gives a driver, and of the thirty of Kubernetes."""

_reason: str | None = None
_asked: str | None = None
_grace = 0.0


def listen() -> None:
    """Take the signals; called again after Ray has started, which takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _reason
    if _reason is not None:
        os._exit(1)
    _reason = _asked or ("stopped by SIGTERM" if number == signal.SIGTERM else "interrupted by Ctrl-C")
    if number == signal.SIGTERM and not _asked:
        time.sleep(_grace)
    raise KeyboardInterrupt


def reason() -> str:
    """What an interrupt came from, for a message."""
    return _reason or "interrupted by Ctrl-C"


def interrupt(why: str) -> None:
    """Interrupt the main thread from another one."""
    global _asked
    _asked = why
    if signal.getsignal(signal.SIGTERM) is _stop:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # also where it waits in the kernel
    else:
        _thread.interrupt_main()


@contextlib.contextmanager
def grace() -> Iterator[None]:
    """For the length of the block, SIGTERM gives other processes GRACE_SECONDS to commit what they are about to."""
    global _grace
    _grace = GRACE_SECONDS
    try:
        yield
    finally:
        _grace = 0.0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ray's own answer to SIGTERM, before :func:`listen` is called again, becomes the same interrupt."""
    global _reason
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        _reason = _asked or "stopped by SIGTERM"
        raise KeyboardInterrupt from None
