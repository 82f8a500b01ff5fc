"""Remember which work was begun and not ended, so that a restarted worker learns what killed its predecessor."""

from __future__ import annotations

from collections import Counter

import ray

MAX_DEATHS = 3
"""Deaths with the same piece of work; more are not chance."""


class CrashLedger:
    """The actor that counts beginnings without an end. It lives as long as the driver.

    A ledger that is lost costs only more tries.
    """

    def __init__(self) -> None:
        self._num_begun: Counter[str] = Counter()
        self._ended: set[str] = set()

    def begin(self, work: str) -> tuple[int, bool]:
        """Note that ``work`` begins; return how often it was begun before without an end, and whether it ever ended."""
        num_deaths = self._num_begun[work]
        self._num_begun[work] += 1
        return num_deaths, work in self._ended

    def end(self, work: str) -> None:
        del self._num_begun[work]
        self._ended.add(work)


class CrashLedgerClient:
    """The ledger as workers call it. It can be pickled to any worker."""

    def __init__(self) -> None:
        make = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(CrashLedger)
        self._ledger = make.remote()

    def begin(self, work: str) -> tuple[int, bool]:
        """See :meth:`CrashLedger.begin`. The ledger has noted the work when this returns."""
        state: tuple[int, bool] = ray.get(self._ledger.begin.remote(work))
        return state

    def end(self, work: str) -> None:
        self._ledger.end.remote(work)
