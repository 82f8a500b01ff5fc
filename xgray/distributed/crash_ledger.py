"""Who began what and did not come back: how a worker that starts anew learns what killed the one before it."""

from __future__ import annotations

from collections import Counter

import ray

MAX_DEATHS = 3
"""Of one piece of work; more are not chance."""


class CrashLedger:
    """Counts beginnings without an end. It lives as long as the driver; what it forgets costs only more tries."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._ended: set[str] = set()

    def begin(self, work: str) -> tuple[int, bool]:
        """How often ``work`` was begun before and not ended, and whether it was ended once."""
        deaths = self._begun[work]
        self._begun[work] += 1
        return deaths, work in self._ended

    def end(self, work: str) -> None:
        del self._begun[work]
        self._ended.add(work)


class CrashLedgerClient:
    """The ledger as a worker sees it. Pickles to any worker."""

    def __init__(self) -> None:
        make = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CrashLedger)
        self._ledger = make.remote()

    def begin(self, work: str) -> tuple[int, bool]:
        """See :meth:`CrashLedger.begin`; on return the ledger knows of it."""
        told: tuple[int, bool] = ray.get(self._ledger.begin.remote(work))
        return told

    def end(self, work: str) -> None:
        self._ledger.end.remote(work)
