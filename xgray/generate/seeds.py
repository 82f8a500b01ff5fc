"""Derive the seed of every sample from the experiment's seed and the prompt's id alone.

So the random numbers of a text depend neither on the prompts sampled beside it, nor on the number of engines, nor on
restarts. The text itself is then the same as well if the model's probabilities are: with transformers, which samples
one prompt at a time, and with vLLM on a CPU. With vLLM on CUDA their last bits vary: see :mod:`xgray.models.vllm`.
"""

from __future__ import annotations

import hashlib

SEED_BITS = 62
"""Leaves room for ``+ i`` below 2**63, the largest seed of torch's generator."""


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Return the seed of a prompt's first sample, in ``[0, 2**62)``; sample i has ``prompt_seed + i``."""
    digest = hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
