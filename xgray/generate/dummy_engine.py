"""No engine at all: words made of the seeds, for driving all that is around an engine at size and through faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from xgray.config import Generate
from xgray.generate.engine import Sample
from xgray.mechanism.neurons import Edit

FINISH_REASON = "dummy"


class DummyEngine:
    """Sleeps and fails as its section says. What it writes says that it is nobody's."""

    def __init__(self, section: Generate) -> None:
        self._section = section
        self._dummy = section.execution.dummy

    def sample(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> list[list[Sample]]:
        for text in texts:
            if self._dummy.dies_on and self._dummy.dies_on in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._dummy.raises_on and self._dummy.raises_on in text:
                raise RuntimeError("the dummy engine raises on this text")
        time.sleep(self._dummy.seconds * len(texts))
        length = self._section.max_new_tokens
        return [
            [Sample(f" dummy {seed + index:016x}", length, FINISH_REASON) for index in range(self._section.k)]
            for seed in seeds
        ]

    def edit(self, edit: Edit | None) -> None:
        """It has no neurons."""

    def close(self) -> None:
        """It holds nothing."""
