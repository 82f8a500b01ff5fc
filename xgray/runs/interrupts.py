"""Turn Ctrl-C, and the SIGTERM that comes before a machine is taken away, into a KeyboardInterrupt.

The interrupt is raised in the main thread, so that every ``with`` and ``finally`` is left in order. While a stage
commits block by block, SIGTERM first waits a moment: the main thread takes on no more work, and what other processes
finish in that time is written. A second signal ends the process at once; the same command resumes the run either way.
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
"""Less than the 3 seconds that ``ray job stop`` gives a driver, and the 30 of Kubernetes."""

_reason: str | None = None
"""Why the process was interrupted, once it was."""
_requested: str | None = None
"""The reason of an interrupt that :func:`interrupt` has requested."""
_grace_seconds = 0.0


def listen() -> None:
    """Install the signal handlers; called again after Ray has started, which replaces the handler of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job of a shell ignores SIGINT
        signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _reason
    if _reason is not None:
        os._exit(1)
    _reason = _requested or ("stopped by SIGTERM" if number == signal.SIGTERM else "interrupted by Ctrl-C")
    if number == signal.SIGTERM and not _requested:
        time.sleep(_grace_seconds)
    raise KeyboardInterrupt


def reason() -> str:
    """Return why the process was interrupted, for a message."""
    return _reason or "interrupted by Ctrl-C"


def interrupt(why: str) -> None:
    """Interrupt the main thread from another thread."""
    global _requested
    _requested = why
    # A signal also reaches a blocking system call.
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    elif callable(signal.getsignal(signal.SIGINT)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextlib.contextmanager
def grace() -> Iterator[None]:
    """While the block runs, let SIGTERM give other processes GRACE_SECONDS to commit the blocks they work on."""
    global _grace_seconds
    _grace_seconds = GRACE_SECONDS
    try:
        yield
    finally:
        _grace_seconds = 0.0


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, turn the SystemExit of Ray's handler of SIGTERM into a KeyboardInterrupt.

    Ray's handler is installed from the start of Ray until :func:`listen` is called again.
    """
    global _reason
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        _reason = _requested or "stopped by SIGTERM"
        raise KeyboardInterrupt from None
