"""The state of a training in one file that any number of workers reads, whatever strategy and number wrote it.

``state.safetensors`` holds what is tuned, ``weight/{parameter}``, and what the optimizer knows of it,
``square_avg/{parameter}`` and the like, whole. DeepSpeed's own checkpoints are cut by worker and cannot
be read by another number of them. ``schedule.json`` holds the learning rate's schedule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

STATE = "state.safetensors"
SCHEDULE = "schedule.json"
WEIGHT = "weight"


def save_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, folder: Path, write: bool) -> None:
    """Write both files; all workers call this, one of them with ``write``.

    Args:
        model: The model as it was before a strategy wrapped it.
        optimizer: What ``accelerate`` made of the optimizer.
    """
    inner = _innermost(optimizer)
    keys = _tensor_keys(inner)
    _link(_zero(optimizer))
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in _tuned(model):
        for key in (WEIGHT, *keys):
            whole = _get(parameter, inner, key)
            if write:
                tensors[f"{key}/{name}"] = whole.detach().to("cpu", copy=True).contiguous()
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    step = next(float(state["step"]) for state in inner.state.values())
    save_file(tensors, folder / STATE, metadata={"step": str(step), "keys": " ".join(keys)})
    # The functions in it are the section's, not the state's.
    schedule = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    (folder / SCHEDULE).write_text(json.dumps(schedule))


def load_state(model: torch.nn.Module, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """Put all that :func:`save_state` wrote in its place, on all workers."""
    inner = _innermost(optimizer)
    with safe_open(folder / STATE, framework="pt") as stream:
        metadata = stream.metadata()
        step, keys = float(metadata["step"]), metadata["keys"].split()
        _begin(_zero(optimizer), keys, step)
        for name, parameter in _tuned(model):
            whole = {key: stream.get_tensor(f"{key}/{name}") for key in (WEIGHT, *keys)}
            _set(parameter, inner, whole, step)
    if hasattr(_zero(optimizer), "update_lp_params"):  # ZeRO-2: the model's weights follow from the optimizer's
        _zero(optimizer).update_lp_params()
    scheduler.load_state_dict(scheduler.state_dict() | json.loads((folder / SCHEDULE).read_text()))
    for group, rate in zip(inner.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def _begin(zero: Any, keys: list[str], step: float) -> None:
    """Give DeepSpeed's optimizer the state that it would have after a step; the plain one gets it with each weight."""
    flat = getattr(zero, "fp32_partitioned_groups_flat", None) or getattr(zero, "single_partition_of_fp32_groups", [])
    for one in flat:
        zero.optimizer.state[one] = {"step": torch.as_tensor(step), **{key: torch.zeros_like(one) for key in keys}}
    _link(zero)


def _link(zero: Any) -> None:
    """Let ZeRO-2 find the state of its parameters; after its first step it does so for the first group of them only."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Put the tuned weights into a plain model, all of whose weights were tuned."""
    with safe_open(folder / STATE, framework="pt") as stream, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stream.get_tensor(f"{WEIGHT}/{name}"))


def _tuned(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def _zero(optimizer: Any) -> Any:
    """The optimizer without accelerate's wrapper: DeepSpeed's, or the plain one."""
    return optimizer.optimizer


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    outer = _zero(optimizer)
    return outer if isinstance(outer, torch.optim.Optimizer) else outer.optimizer


def _tensor_keys(optimizer: torch.optim.Optimizer) -> list[str]:
    """What the optimizer keeps for every element of a parameter."""
    state: dict[str, Any] = next(iter(optimizer.state.values()), {})
    return sorted(key for key, value in state.items() if torch.is_tensor(value) and value.dim())


def _is_partitioned(parameter: torch.nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _get(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
    """A parameter's whole weight or state; where DeepSpeed cuts it up, all workers call this."""
    if not _is_partitioned(parameter):
        return parameter if key == WEIGHT else optimizer.state[parameter][key]
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    return safe_get_full_fp32_param(parameter) if key == WEIGHT else safe_get_full_optimizer_state(parameter, key)


def _set(
    parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, whole: dict[str, torch.Tensor], step: float
) -> None:
    whole = {key: value.to(parameter.device) for key, value in whole.items()}
    weight = whole.pop(WEIGHT)
    if not _is_partitioned(parameter):
        parameter.data.copy_(weight)
        optimizer.state[parameter] = {"step": torch.as_tensor(step), **whole}
        return
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, weight)
    for key, value in whole.items():
        safe_set_full_optimizer_state(parameter, value, key)
    if hasattr(parameter, "ds_id"):  # ZeRO-3: what the model computes with is cut up on its own
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(weight)
