"""Top-p sampling inside vLLM on a CPU, by vLLM's interface for logits processors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from xgray.generate.top_p import keep_nucleus


class TopP(LogitsProcessor):  # type: ignore[misc]
    """Applies the ``top_p`` of the requests' ``extra_args``, which is the same for all requests of an engine.

    vLLM calls it where it would apply its own ``top_p``: after the temperature.
    """

    def __init__(self, *_: Any) -> None:
        self._top_p = 1.0

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        for _, parameters, *_ in batch_update.added if batch_update else ():
            self._top_p = parameters.extra_args["top_p"]

    def apply(self, logits: Tensor) -> Tensor:
        return keep_nucleus(logits, self._top_p)
