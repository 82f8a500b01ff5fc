"""Keep freed memory in the process, for models that run on a CPU."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""
NEVER = -1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc; elsewhere do nothing.

    By default glibc gives large arrays back to the system at once. The next array of the same size then costs a page
    fault for every 4 KiB, and the system fills it with zeros first: a tenth of a training step's time. The process
    holds its peak until it ends, so this is for processes that run one model.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
