"""The seed of every sample, from the experiment's seed and the prompt alone.

So the random numbers of a text depend neither on the prompts beside it, nor on how many engines there are, nor on
restarts. Nor does the text where the model's probabilities do not: with transformers, which takes one prompt at a
time, and with vLLM on a CPU. With vLLM on CUDA they do in their last bits: see :mod:`xgray.models.vllm`.
"""

from __future__ import annotations

import hashlib

SEED_BITS = 62
"""Leaves room for ``+ i`` below 2**63, the largest seed that torch's generator takes."""


def prompt_seed(seed: int, prompt_id: str) -> int:
    """The seed of a prompt's first sample, in ``[0, 2**62)``; sample i has ``prompt_seed + i``."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
