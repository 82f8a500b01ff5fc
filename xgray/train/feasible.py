"""Refuse trainings that cannot run, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from xgray.config import Train
from xgray.errors import InputError
from xgray.train.pairs import validation_batch


@dataclass(frozen=True)
class StepShare:
    """What one of several workers does of an optimizer step."""

    batch_size: int
    """Pairs in one of its forward and backward passes."""
    gradient_accumulation: int
    """Its passes in one optimizer step."""


def step_share(section: Train, num_workers: int) -> StepShare | None:
    """Return the share of one of ``num_workers`` workers in an optimizer step, None if they cannot share it evenly.

    Each takes a part of every batch, or, where there are more workers than pairs in a batch, whole batches of those
    that the step accumulates. Either way a step consists of the same pairs, and its gradient is the mean over them. In
    an epoch's last step, which may have fewer batches, pairs that the workers cannot share evenly are left out.
    """
    if section.batch_size % num_workers == 0:
        return StepShare(section.batch_size // num_workers, section.gradient_accumulation)
    num_pairs, remaining = divmod(section.batch_size * section.gradient_accumulation, num_workers)
    if remaining or validation_batch(section) % num_workers:
        return None
    largest = max(1, section.batch_size // num_workers)
    batch_size = max(size for size in range(1, largest + 1) if num_pairs % size == 0)
    return StepShare(batch_size, num_pairs // batch_size)


def check_feasible(section: Train, cuda: bool) -> None:
    """Check that the fields of the section can be combined, on workers with or without CUDA.

    Raises:
        InputError: they cannot; the message names the field and what to use instead.
    """
    execution = section.execution
    if step_share(section, execution.num_workers) is None:
        raise InputError(
            f"train.batch_size: {section.batch_size} pairs, accumulated {section.gradient_accumulation} times, cannot "
            f"be shared evenly by {execution.num_workers} workers (train.execution.num_workers)"
        )
    if section.method == "qlora" and not cuda:
        raise InputError("train.method: qlora needs a CUDA device; use lora on a machine without one")
    if execution.strategy != "zero3" or section.method == "full":
        return
    if section.method == "qlora":
        raise InputError("train.execution.strategy: zero3 cannot partition weights in 4 bits; use ddp or zero2")
    if section.lora_targets == "released":
        raise InputError("train.lora_targets: released adapts the head, which zero3 partitions; use ddp or zero2")
