"""Save and load the state of a training in one file that any number of workers and any strategy can read.

``state.safetensors`` holds whole tensors: tuned weights as ``weight/{parameter}``, and the optimizer's states as
``square_avg/{parameter}`` and the like. ``schedule.json`` holds the schedule of the learning rate.
"""

# DeepSpeed's universal checkpoint cannot replace this: its converter (0.19) reads pickles with Adam's states only, not
# RMSProp's, and DDP cannot load the result. torch.distributed.checkpoint does not know how ZeRO partitions states.

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STATE = "state.safetensors"
SCHEDULE = "schedule.json"
WEIGHT = "weight"


@dataclass(frozen=True)
class TrainingState:
    """A copy of a training's state in host memory, which further steps do not change."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    schedule: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write both files into a folder that exists.

        Raises:
            SafetensorError: the disk is full, or refuses the file for another reason.
        """
        save_file(self.tensors, folder / STATE, metadata=self.metadata)
        (folder / SCHEDULE).write_text(json.dumps(self.schedule))


def copy_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, keep: bool) -> TrainingState | None:
    """Copy the state of a training. All workers call this, and one of them with ``keep``.

    Args:
        model: The model as it was before a strategy wrapped it.
        optimizer: The optimizer, or what ``accelerate`` made of it.
        scheduler: The schedule of the learning rate.
        keep: Whether this worker takes the copy, which needs 4 bytes of host memory for each tuned parameter and each
            of its states.

    Returns:
        The copy, or None for the other workers.
    """
    torch_optimizer = _torch_optimizer(optimizer)
    keys = _tensor_keys(torch_optimizer)
    _link_zero2_states(_unwrap(optimizer))
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _tuned_parameters(model):
        for key in (WEIGHT, *keys):
            tensor = _gather(parameter, torch_optimizer, key)
            if keep:
                tensors[f"{key}/{name}"] = _copy_to_host(tensor.detach())
    if not keep:
        return None
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the copies are complete from here on
    step = next(float(state["step"]) for state in torch_optimizer.state.values())
    # The functions in the schedule follow from the experiment file, so they are no state.
    schedule = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    return TrainingState(tensors, {"step": str(step), "keys": " ".join(keys)}, schedule)


def _copy_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy in host memory; one from a GPU is complete only after a synchronization."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=tensor.is_cuda)


def load_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Load what :meth:`TrainingState.write` wrote into the model, the optimizer and the schedule, on all workers."""
    torch_optimizer, zero = _torch_optimizer(optimizer), _unwrap(optimizer)
    with safe_open(folder / STATE, framework="pt") as stream:
        metadata = stream.metadata()
        step, keys = float(metadata["step"]), metadata["keys"].split()
        _create_zero_states(zero, keys, step)
        for name, parameter in _tuned_parameters(model):
            tensors = {key: stream.get_tensor(f"{key}/{name}") for key in (WEIGHT, *keys)}
            _scatter(parameter, torch_optimizer, tensors, step)
    if hasattr(zero, "update_lp_params"):  # ZeRO-2 copies the optimizer's weights into the model's
        zero.update_lp_params()
    scheduler.load_state_dict(scheduler.state_dict() | json.loads((folder / SCHEDULE).read_text()))
    for group, rate in zip(torch_optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Load the tuned weights of a checkpoint into a plain model, all of whose weights were tuned."""
    with safe_open(folder / STATE, framework="pt") as stream, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stream.get_tensor(f"{WEIGHT}/{name}"))


def _create_zero_states(zero: Any, keys: list[str], step: float) -> None:
    """Give DeepSpeed's optimizer the states that it creates in its first step; a plain optimizer is left as it is."""
    flat_groups = getattr(zero, "fp32_partitioned_groups_flat", None) or getattr(
        zero, "single_partition_of_fp32_groups", []
    )
    for group in flat_groups:
        states = {key: torch.zeros_like(group) for key in keys}
        zero.optimizer.state[group] = {"step": torch.as_tensor(step), **states}
    _link_zero2_states(zero)


def _link_zero2_states(zero: Any) -> None:
    """Let ZeRO-2 find the states of all parameters; after its first step it finds only those of the first group."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _tuned_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _unwrap(optimizer: Any) -> Any:
    """Return the optimizer without accelerate's wrapper, if it has one: DeepSpeed's, or a plain one."""
    return getattr(optimizer, "optimizer", optimizer)


def _torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    unwrapped = _unwrap(optimizer)
    return unwrapped if isinstance(unwrapped, torch.optim.Optimizer) else unwrapped.optimizer


def _tensor_keys(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the states that have a value for every element of a parameter."""
    state: dict[str, Any] = next(iter(optimizer.state.values()), {})
    return sorted(key for key, value in state.items() if torch.is_tensor(value) and value.dim())


def _is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """Return whether DeepSpeed partitions the parameter (ZeRO-3) or its optimizer states (ZeRO-2)."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _gather(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
    """Return a parameter's whole weight or state; all workers call this where DeepSpeed partitions it."""
    if not _is_partitioned(parameter):
        return parameter if key == WEIGHT else optimizer.state[parameter][key]
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_fp32_param(parameter) if key == WEIGHT else safe_get_full_optimizer_state(parameter, key)


def _scatter(
    parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], step: float
) -> None:
    """Set a parameter's weight and states from whole tensors, on all workers."""
    states = {key: tensor.to(parameter.device) for key, tensor in tensors.items()}
    weight = states.pop(WEIGHT)
    if not _is_partitioned(parameter):
        parameter.data.copy_(weight)
        optimizer.state[parameter] = {"step": torch.as_tensor(step), **states}
        return
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, weight)
    for key, tensor in states.items():
        safe_set_full_optimizer_state(parameter, tensor, key)
    if hasattr(parameter, "ds_id"):  # ZeRO-3 partitions the weights that the model computes with separately
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
