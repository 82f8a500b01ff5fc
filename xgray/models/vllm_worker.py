"""What xgray adds to vLLM's worker processes, which hold the model.

A worker imports this module before it loads anything, and from then on ends with the process that started it, which may
be an engine's core. vLLM ends its workers then too, but lets one that loads a model finish first: on a GPU it would
hold the memory that the next engine needs.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading

NAME = f"{__name__}.EndsWithDriver"


class EndsWithDriver:
    """A method that vLLM adds to its worker class (``worker_extension_cls``)."""

    def end_with_driver(self, pid: int) -> None:
        """Kill this process as soon as the process ``pid`` has ended.

        vLLM tells its processes when the program that started them ends, but not when it is killed: they would go on,
        and hold the GPU's memory.
        """
        if pid != os.getpid():  # on a CPU vLLM may compute in the program's own process
            _end_with(pid)


def _end_with(pid: int) -> None:
    """Kill this process as soon as the process ``pid`` has ended."""
    try:
        other = os.pidfd_open(pid)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_end_after, args=(other,), name=f"end-with-{pid}", daemon=True).start()


def _end_after(other: int) -> None:
    select.select([other], [], [])  # a process's descriptor can be read once it has ended
    os.kill(os.getpid(), signal.SIGKILL)


parent = multiprocessing.parent_process()
if parent is not None and parent.pid is not None:  # this is a process that Python started for another
    _end_with(parent.pid)
