"""Write checkpoints in a thread, beside the training's next steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundWriter:
    """Runs writes one after the other in a thread. After one that failed no other is run.

    Errors are raised in the training's thread, by whatever it calls next.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._futures: list[Future[None]] = []
        self._failure: BaseException | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Run a write after those that were submitted before it.

        Raises:
            OSError: an earlier write failed; also of any other kind.
        """
        self.check()
        self._futures.append(self._pool.submit(self._run, write))

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: a write failed; also of any other kind.
        """
        for future in self._futures:
            future.result()
        self._futures.clear()
        self.check()

    def check(self) -> None:
        """Raise the error of a write that has failed.

        Raises:
            OSError: a write failed; also of any other kind.
        """
        if self._failure is not None:
            raise self._failure

    def _run(self, write: Callable[[], None]) -> None:
        if self._failure is not None:
            return  # what belongs to a half-written checkpoint must not make it look whole
        try:
            write()
        except BaseException as error:
            self._failure = error
