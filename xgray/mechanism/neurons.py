"""The neurons of any transformer's MLPs, and hooks on them.

An MLP ends in its down projection. Neuron i of a layer is entry i of that projection's input (after the non-linearity
and, where there is one, the gate); its value vector is what the projection writes into the residual stream for an
activation of 1: column i of the matrix that maps activations to the stream. Some architectures have a norm between the
projection and the stream, whose gain turns the vector on its way (:func:`written_vectors`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xgray.config import Neuron
from xgray.errors import InputError
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import torch

DOWN_PROJECTIONS = (
    "mlp.down_proj",  # Llama, Cohere, Gemma, Qwen, Mistral
    "mlp.c_proj",  # GPT-2, mGPT
    "mlp.dense_4h_to_h",  # BLOOM, GPT-NeoX
)
"""How a block's modules name the down projection of its MLP; another architecture is one more line."""

NORMS_AFTER_MLP = (
    "post_feedforward_layernorm",  # Gemma 2 and 3, OLMo 2 and 3
    "post_mlp_layernorm",  # GLM-4
)
"""How a block names a norm between its MLP and the residual stream, where it has one."""

NO_SOURCES = "the stage vectors found no actual sources, so that there is nothing to look at; list neurons of your own"
"""Why a stage that looks at them has an empty result: a finding, which keeps nothing else from going on."""


@dataclass(frozen=True)
class Edit:
    """Neurons whose activations become ``multiplier * activation + offset`` at every token."""

    neurons: tuple[Neuron, ...]
    offset: float = 0.0
    multiplier: float = 1.0

    def of_shard(self, rank: int, sizes: Sequence[int]) -> Edit:
        """What of it falls to one of the processes that share each layer's neurons out evenly, by their local indices.

        Args:
            sizes: neurons of each layer in one process.
        """
        local = ((layer, index - rank * sizes[layer]) for layer, index in self.neurons)
        return replace(self, neurons=tuple((layer, index) for layer, index in local if 0 <= index < sizes[layer]))


def down_projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The down projection of each layer, from the first to the last; also of a model with an adapter, or vLLM's.

    Raises:
        InputError: the model's MLPs are of a kind that is not known.
    """
    pattern = re.compile(rf"\.(\d+)\.(?:{'|'.join(map(re.escape, DOWN_PROJECTIONS))})$")
    matches = [(pattern.search(name), module) for name, module in model.named_modules()]
    found = [(int(match[1]), module) for match, module in matches if match is not None]
    layers = sorted(layer for layer, _ in found)
    if not found or layers != list(range(len(found))):
        # Also a mixture of experts in some layers, or a second stack of blocks, such as one for images.
        problem = f"it has them in layers {', '.join(map(str, layers))}" if found else "it has none"
        raise InputError(
            f"the MLPs of a {type(model).__name__} are not known: each layer must have one module named "
            f"{' or '.join(DOWN_PROJECTIONS)}, and {problem}; add its down projection's name to DOWN_PROJECTIONS in "
            "xgray/mechanism/neurons.py"
        )
    return [module for _, module in sorted(found, key=lambda one: one[0])]


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers, each attention and MLP: the last one's output is the residual stream before the model's final norm.

    Raises:
        InputError: the model's MLPs are of a kind that is not known.
    """
    names = {module: name for name, module in model.named_modules()}
    ending = re.compile(rf"\.(?:{'|'.join(map(re.escape, DOWN_PROJECTIONS))})$")
    return [model.get_submodule(ending.sub("", names[one])) for one in down_projections(model)]


def value_vectors(projection: torch.nn.Module) -> torch.Tensor:
    """The value vectors of a layer, ``(num_neurons, hidden_size)``, with what active adapters add to them.

    Without an adapter they are a view of the weight, whatever its orientation.
    """
    plain = getattr(projection, "base_layer", projection)
    weight: torch.Tensor = plain.weight
    if plain is not projection and not projection.merged and not projection.disable_adapters:
        for adapter in projection.active_adapters:
            weight = weight + projection.get_delta_weight(adapter)
    # Conv1D holds (in, out); Linear, and vLLM's, (out, in).
    return weight if type(plain).__name__ == "Conv1D" else weight.T


def written_vectors(block: torch.nn.Module, projection: torch.nn.Module) -> torch.Tensor:
    """The directions in which a layer's neurons write into the residual stream, ``(num_neurons, hidden_size)``, fp32.

    They are its value vectors; after a norm, each times the norm's gain. The norm also divides by the length of all
    that the MLP writes for a token, which is one number for all neurons, and turns none of them.
    """
    import torch

    vectors = value_vectors(projection).float()
    norm = next((getattr(block, name) for name in NORMS_AFTER_MLP if hasattr(block, name)), None)
    if norm is None:
        return vectors
    # Its gain is what a root-mean-square norm makes of ones, be it the weight or, as in Gemma, the weight and 1.
    gain: torch.Tensor = norm(torch.ones(vectors.shape[1], device=vectors.device))
    return vectors * gain.float()


def check_neurons(neurons: Sequence[Neuron], model: torch.nn.Module, where: str) -> None:
    """
    Raises:
        InputError: one of them is outside the model or listed twice; ``where`` names the list.
    """
    sizes = [value_vectors(one).shape[0] for one in down_projections(model)]
    if len(set(neurons)) < len(neurons):
        twice = next(one for one in neurons if list(neurons).count(one) > 1)
        raise InputError(f"{where}: neuron {list(twice)} is listed twice")
    for layer, index in neurons:
        if not (0 <= layer < len(sizes) and 0 <= index < sizes[layer]):
            raise InputError(
                f"{where}: no neuron {[layer, index]}: the model has {len(sizes)} layers of {sizes[0]} neurons, "
                "counted from 0"
            )


def actual_sources(vectors: Folder) -> list[Neuron]:
    """The neurons that the stage ``vectors``, whose folder this is, found to be sources of toxicity; it may be none."""
    return [(int(layer), int(index)) for layer, index in vectors.read_json("metrics.json")["sources"]]


def by_layer(neurons: Sequence[Neuron]) -> dict[int, list[int]]:
    """Positions in ``neurons`` of those of each layer."""
    layers: dict[int, list[int]] = {}
    for position, (layer, _) in enumerate(neurons):
        layers.setdefault(layer, []).append(position)
    return layers


@contextmanager
def capturing(
    model: torch.nn.Module, neurons: Sequence[Neuron], take: Callable[[list[int], torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs, each forward pass gives ``take`` the chosen neurons' activations, a layer at a time.

    Args:
        take: called with positions in ``neurons`` and their activations, ``(batch, tokens, num_positions)``, in the
            model's precision; it keeps what it wants of them, and nothing else is kept.
    """
    import torch

    projections, handles = down_projections(model), []
    for layer, positions in by_layer(neurons).items():
        indices = torch.tensor([neurons[one][1] for one in positions])

        def hook(
            module: torch.nn.Module,
            inputs: tuple[torch.Tensor, ...],
            positions: list[int] = positions,
            indices: torch.Tensor = indices,
        ) -> None:
            take(positions, inputs[0].index_select(-1, indices.to(inputs[0].device)))

        handles.append(projections[layer].register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def install(model: torch.nn.Module, edit: Edit) -> list[torch.utils.hooks.RemovableHandle]:
    """Edit the neurons in every forward pass from now on, until the handles are removed.

    An offset of 0 and a multiplier of 1 leave every activation as it is, bit for bit.
    """
    import torch

    projections, handles = down_projections(model), []
    for layer, positions in by_layer(edit.neurons).items():
        indices = torch.tensor([edit.neurons[one][1] for one in positions])

        def hook(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], indices: torch.Tensor = indices
        ) -> tuple[torch.Tensor, ...]:
            activations = inputs[0].clone()
            chosen = indices.to(activations.device)
            values = activations[..., chosen]
            if edit.multiplier != 1:
                values = values * edit.multiplier
            if edit.offset != 0:  # 0 would turn -0 into 0
                values = values + edit.offset
            activations[..., chosen] = values
            return (activations, *inputs[1:])

        handles.append(projections[layer].register_forward_pre_hook(hook))
    return handles


@contextmanager
def edited(model: torch.nn.Module, edit: Edit) -> Iterator[None]:
    """The model with its neurons edited while the block runs; see :func:`install`."""
    handles = install(model, edit)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
