"""An engine without a model, for exercising the rest of the pipeline at any size and through faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from xgray.config import Generate
from xgray.generate.engine import Sample, Waiting, Weights
from xgray.mechanism.neurons import Edit

FINISH_REASON = "dummy"


class DummyEngine:
    """Samples words made from the seeds, and sleeps and fails as its section says."""

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

    def begin(self, texts: Sequence[str], seeds: Sequence[int], adapter: str | None) -> Waiting:
        return lambda: self.sample(texts, seeds, adapter)

    @property
    def facts(self) -> dict[str, Any]:
        """Nothing beyond the section."""
        return {}

    def reload(self, weights: Weights) -> bool:
        """Return False: a new engine takes no longer."""
        return False

    def edit(self, edit: Edit | None) -> None:
        """Do nothing: there are no neurons."""

    def close(self) -> None:
        """Do nothing: there is no memory to free."""
