"""Set the environment and options that vLLM needs before it is imported and started in this process.

Reproducibility. On a CPU a text does not depend on the prompts that are computed in the same step. On CUDA it may:
vLLM's kernels add in another order when a step holds more or other sequences, and a text changes where two tokens are
nearly equally likely. Which sequences share a step depends on the block of prompts that is sampled beside this one, on
vLLM's timing and on the GPU's memory, and what an earlier block left in the prefix cache is not computed again. So on
CUDA the same random numbers are promised, and not the same texts. ``generate.batch_invariant`` turns vLLM's remedy on:
it is slower, needs compute capability 8.0, and has not been tried with xgray.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from xgray.errors import InputError
from xgray.models.cuda import check_vllm_build
from xgray.models.vllm_start import record_errors

CPU_ENVIRONMENT = {
    # Ray counts the cores, so vLLM must neither bind threads to cores nor reserve a core for a scheduler process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
CPU_STEP_TOKENS = 1024
"""Prompt tokens in one step on a CPU. More are no faster, and the engine's trial step at its start uses them all."""


BATCH_INVARIANT_CAPABILITY = (8, 0)
"""The least compute capability with which vLLM's batch invariance works: its kernels for 8.0 replace cuBLAS's."""


def prepare_environment(path: str, batch_invariant: bool = False) -> None:
    """Set the environment variables that the user has not set. Call this before ``import vllm``.

    Args:
        path: A local folder with the model, or its hub id.
        batch_invariant: Whether texts must not depend on the texts beside them, on GPUs.

    Raises:
        InputError: vLLM was built for CUDA, and there is no GPU; or the GPU is too old for batch invariance.
    """
    import torch

    check_vllm_build()

    for name, value in {} if torch.cuda.is_available() else CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if batch_invariant and torch.cuda.is_available():
        check_capability(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    record_errors()
    if Path(path).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def check_capability(capability: tuple[int, int], name: str) -> None:
    """Refuse batch invariance on a GPU that is too old for it.

    Raises:
        InputError: names the GPU and its compute capability.
    """
    if capability < BATCH_INVARIANT_CAPABILITY:
        least, found = ".".join(map(str, BATCH_INVARIANT_CAPABILITY)), ".".join(map(str, capability))
        raise InputError(
            f"generate.batch_invariant: needs a GPU of compute capability {least} or later, and {name} has {found}. "
            "Leave it out, or take a newer GPU."
        )


def cpu_options(length: int) -> dict[str, Any]:
    """Return engine options that make vLLM fast on a CPU and texts independent of each other; empty on CUDA.

    Args:
        length: Tokens of the longest sequence, prompt and completion together.
    """
    import torch

    if torch.cuda.is_available():
        return {}
    return {
        "enforce_eager": True,  # compiling takes over a minute, more than a usual run gains from it
        "max_num_batched_tokens": max(length, CPU_STEP_TOKENS),
        # Sequences are short: in blocks of 128 tokens, the default, the cache would hold few of them, and samples
        # would share no part of their prompt.
        "block_size": 32,
        # vLLM fails on a prompt that is cut in two: it then rewinds the request's generator, which CPU generators
        # cannot do.
        "enable_chunked_prefill": False,
    }


def memory_options(utilization: float | None) -> dict[str, Any]:
    """Return the engine option that limits the memory of a GPU; empty on a CPU, where vLLM takes it for the machine's.

    Args:
        utilization: the part of a GPU's memory, between 0 and 1, or None for vLLM's default.
    """
    import torch

    return {"gpu_memory_utilization": utilization} if utilization is not None and torch.cuda.is_available() else {}
