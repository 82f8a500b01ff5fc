"""What vLLM wants in the environment and among its options before it is imported and started in this process.

On a CPU a text does not depend on what is computed beside it. On CUDA it may: vLLM's kernels add up in another order
when a step holds more or other sequences, and a text turns where two tokens are nearly as likely. There a block goes to
an engine with the same prompts after every restart and with any number of engines, unless
``generate.execution.batch_size`` was changed in between, or the engine failed or died with the block, after which its
prompts go one by one. But which of its sequences share a step is a matter of vLLM's timing and of the GPU's memory, and
what an earlier block left in the prefix cache is not computed again. So nothing is promised there but the same random
numbers. ``VLLM_BATCH_INVARIANT=1`` is vLLM's own way out, and the user's to set: it is slower, wants compute capability
9.0, and has not been tried here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

CPU_ENVIRONMENT = {
    # Ray counts the cores; vLLM must neither bind threads by itself nor keep one for a scheduler process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
CPU_STEP_TOKENS = 1024
"""Prompt tokens in one step on a CPU: more are no faster, and the engine's trial step at its start takes them all."""


def prepare_environment(path: str) -> None:
    """Set what the user has not set, for a model that lies at ``path``; to be called before ``import vllm``."""
    import torch

    for name, value in {} if torch.cuda.is_available() else CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if Path(path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def cpu_options(length: int) -> dict[str, Any]:
    """What makes vLLM quick on a CPU, and keeps a text independent of the ones beside it; none of it on CUDA.

    Args:
        length: tokens of the longest sequence.
    """
    import torch

    if torch.cuda.is_available():
        return {}
    return {
        "enforce_eager": True,  # compiling takes more than a minute, and gains less in the time that a run has
        "max_num_batched_tokens": max(length, CPU_STEP_TOKENS),
        # Sequences are short: with the default of 128 the cache would hold few of them, and samples share no prompt.
        "block_size": 32,
        # A prompt cut in two fails: vLLM then winds the request's generator back, which CPU generators cannot do.
        "enable_chunked_prefill": False,
    }
