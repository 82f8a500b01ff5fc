"""Configure DeepSpeed: ZeRO stages 2 and 3, on CUDA (nccl) and on a CPU (gloo)."""

from __future__ import annotations

from typing import Any, Literal


def deepspeed_config(strategy: Literal["zero2", "zero3"], cuda: bool) -> dict[str, Any]:
    """Return the configuration; transformers fills in every ``auto`` from the training arguments."""
    zero: dict[str, Any] = {"stage": 2, "contiguous_gradients": True, "overlap_comm": cuda}
    if strategy == "zero3":
        # Gather weights on save, so that an adapter is saved whole and not as a shard.
        zero |= {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        # RMSProp is not among the optimizers that DeepSpeed lists as tested with ZeRO.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }


def start_deepspeed(cuda: bool) -> None:
    """Connect this process to the other workers through DeepSpeed; without it ZeRO-3 sees a single worker."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")


def leave_deepspeed() -> None:
    """Let models load whole again: ZeRO-3 partitions every model that transformers loads while its settings exist.

    They exist as long as the trainer does, and other references may keep the trainer until the garbage collector runs.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
