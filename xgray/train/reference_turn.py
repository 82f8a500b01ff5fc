"""Let one training at a time compute the reference's log-probabilities, so that those beside it find them in the cache.

The turn is a lock on a file beside the cached values, which the system releases when its holder dies: then the next one
computes what is still missing. Trainings that share no cache, as on the disks of two machines, share no turn either:
each computes its own values.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence

from xgray.train.pairs import TokenizedPair
from xgray.train.reference import ReferenceCache

POLL_SECONDS = 0.5
LOCK = ".turn"


@contextlib.contextmanager
def reference_turn(
    cache: ReferenceCache, pairs: Sequence[TokenizedPair], while_waiting: Callable[[], None]
) -> Iterator[None]:
    """Hold the turn while the block runs, if the cache lacks one of the pairs: now, and still when the turn comes.

    Args:
        cache: of the reference model.
        pairs: all that the training needs, for training and for validation.
        while_waiting: called every ``POLL_SECONDS`` until the turn comes; what it raises ends the waiting.
    """
    folder = cache.folder.local
    assert folder is not None  # the cache is on a disk of the machine
    keys = {cache.key(pair) for pair in pairs}
    if keys <= cache.read().keys():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        while not _lock(file.fileno()):
            while_waiting()
            time.sleep(POLL_SECONDS)
        if keys <= cache.read().keys():
            fcntl.flock(file, fcntl.LOCK_UN)
        yield


def _lock(descriptor: int) -> bool:
    """Take the lock if it is free; also return True where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    return True
