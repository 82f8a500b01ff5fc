"""What xgray adds to vLLM's worker processes, which hold the model."""

from __future__ import annotations

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
        if pid == os.getpid():  # on a CPU vLLM computes in the program's own process
            return
        try:
            driver = os.pidfd_open(pid)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=_end_after, args=(driver,), name="end-with-driver", daemon=True).start()


def _end_after(driver: int) -> None:
    select.select([driver], [], [])  # a process's descriptor can be read once it has ended
    os.kill(os.getpid(), signal.SIGKILL)
