"""DeepSpeed configurations: ZeRO stages 2 and 3, on CUDA (nccl) and on CPU (gloo)."""

from __future__ import annotations

from typing import Any, Literal


def deepspeed_config(strategy: Literal["zero2", "zero3"], cuda: bool) -> dict[str, Any]:
    """The configuration that transformers completes: what is ``auto`` follows from the training arguments."""
    zero: dict[str, Any] = {"stage": 2, "contiguous_gradients": True, "overlap_comm": cuda}
    if strategy == "zero3":
        # Gathered on save, so that an adapter is whole and not only a shard.
        zero |= {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": zero,
        # RMSProp is none of the optimizers that DeepSpeed lists as tested with ZeRO.
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
    """Join this process to the others through DeepSpeed; ZeRO-3 sees a world of one where this is left out."""
    import deepspeed

    deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")


def leave_deepspeed() -> None:
    """Let models load whole again: ZeRO-3 cuts up every model that transformers loads while its settings are alive.

    They live as long as the trainer does, and what still refers to that is for the garbage collector to say.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
