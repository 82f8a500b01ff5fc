"""What cannot be trained, said before anything is started."""

from __future__ import annotations

from xgray.config import Train
from xgray.errors import InputError


def check_feasible(section: Train, cuda: bool) -> None:
    """Whether the fields of the section go together, on workers with or without CUDA.

    Raises:
        InputError: naming the field and what to take instead.
    """
    execution = section.execution
    if section.batch_size % execution.num_workers:
        raise InputError(
            f"train.batch_size: {section.batch_size} pairs cannot be shared evenly by "
            f"{execution.num_workers} workers (train.execution.num_workers)"
        )
    if section.method == "qlora" and not cuda:
        raise InputError("train.method: qlora needs a CUDA device; take lora on a machine without one")
    if execution.strategy != "zero3" or section.method == "full":
        return
    if section.method == "qlora":
        raise InputError("train.execution.strategy: zero3 cannot share weights in 4 bits; take ddp or zero2")
    if section.lora_targets == "released":
        raise InputError("train.lora_targets: released adapts the head, which zero3 keeps in parts; take ddp or zero2")
