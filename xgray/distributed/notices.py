"""Keep a line off the terminal that Ray's core writes whenever its log level is set, before it heeds the level."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

NOTICE = re.compile(rb"\[[^\n]*logging\.cc[^\n]*Set ray log level[^\n]*\n")
STDERR = 2
END_SECONDS = 1.0
"""How long to wait for what was written last."""


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """While the block runs, pass on what this process writes to its standard error, but for the notice."""
    try:
        terminal = os.dup(STDERR)
    except OSError:  # there is none
        yield
        return
    read_end, write_end = os.pipe()

    def pass_on() -> None:
        while written := os.read(read_end, 2**16):
            left = NOTICE.sub(b"", written)
            while left:
                left = left[os.write(terminal, left) :]
        os.close(read_end)
        os.close(terminal)

    thread = threading.Thread(target=pass_on, daemon=True)
    os.dup2(write_end, STDERR)
    os.close(write_end)
    thread.start()
    try:
        yield
    finally:
        os.dup2(terminal, STDERR)
        thread.join(END_SECONDS)  # a process that was started in the block may hold the other end
