"""Refuse trainings that cannot run, before anything is started."""

from __future__ import annotations

from xgray.config import Train
from xgray.errors import InputError


def check_feasible(section: Train, cuda: bool) -> None:
    """Check that the fields of the section can be combined, on workers with or without CUDA.

    Raises:
        InputError: they cannot; the message names the field and what to use instead.
    """
    execution = section.execution
    if section.batch_size % execution.num_workers:
        raise InputError(
            f"train.batch_size: {section.batch_size} pairs cannot be shared evenly by "
            f"{execution.num_workers} workers (train.execution.num_workers)"
        )
    if section.method == "qlora" and not cuda:
        raise InputError("train.method: qlora needs a CUDA device; use lora on a machine without one")
    if execution.strategy != "zero3" or section.method == "full":
        return
    if section.method == "qlora":
        raise InputError("train.execution.strategy: zero3 cannot partition weights in 4 bits; use ddp or zero2")
    if section.lora_targets == "released":
        raise InputError("train.lora_targets: released adapts the head, which zero3 partitions; use ddp or zero2")
