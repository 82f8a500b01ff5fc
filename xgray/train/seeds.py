"""Seeds of a training's steps."""

from __future__ import annotations

import hashlib


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step of one worker, so that a resumed training draws the same random numbers.

    Args:
        seed: the training's.
        step: the steps that are done.
        rank: the worker's number.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
