"""The MLP neurons of any transformer: find them, read their activations, and edit them with hooks.

An MLP ends in its down projection. The activation of neuron i of a layer is entry i of that projection's input, after
the non-linearity and, if the MLP has one, the gate. The neuron's value vector is what the projection writes into the
residual stream for an activation of 1 (Geva et al. 2022): column i of the matrix that maps activations to the residual
stream. Some architectures have a norm between the projection and the stream, whose gain changes the direction of the
vector (:func:`written_vectors`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xgray.config import Neuron
from xgray.errors import InputError
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DOWN_PROJECTIONS = (
    "mlp.down_proj",  # Llama, Cohere, Gemma, Qwen, Mistral
    "mlp.c_proj",  # GPT-2, mGPT
    "mlp.dense_4h_to_h",  # BLOOM, GPT-NeoX
)
"""Names of the down projection within a layer. To support another architecture, add the name it uses."""

NORMS_AFTER_MLP = (
    "post_feedforward_layernorm",  # Gemma 2 and 3, OLMo 2 and 3
    "post_mlp_layernorm",  # GLM-4
)
"""Names of the norm between a layer's MLP and the residual stream, in the architectures that have one."""

NO_SOURCES = (
    "the stage vectors found no actual sources, so there are no neurons to look at; "
    "list neurons in the experiment file to look at others"
)
"""Why a stage that looks at the actual sources has an empty result. This is a finding, not an error."""


@dataclass(frozen=True)
class Edit:
    """An intervention: the neurons' activations become ``multiplier * activation + offset`` at every token."""

    neurons: tuple[Neuron, ...]
    offset: float = 0.0
    multiplier: float = 1.0

    def local_part(self, rank: int, sizes: Sequence[int]) -> Edit:
        """Return the part of the edit that falls to one of several tensor-parallel processes, with its local indices.

        Every process holds the same number of a layer's neurons, in the order of their ranks.

        Args:
            rank: of the process, from 0.
            sizes: number of neurons of each layer in one process, ``(num_layers,)``.
        """
        local = ((layer, index - rank * sizes[layer]) for layer, index in self.neurons)
        return replace(self, neurons=tuple((layer, index) for layer, index in local if 0 <= index < sizes[layer]))


def transformer_layers(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the model's layers, each with attention and MLP, from the first to the last.

    The output of the last layer is the residual stream before the model's final norm.

    Raises:
        InputError: the model does not hold its layers in one list.
    """
    import torch

    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    raise InputError(
        f"model.id: a {type(model).__name__} has no list of {num_layers} layers, so xgray cannot look inside it. "
        "Take a decoder that holds its layers in one list, or leave out the sections probe, vectors and retrieve."
    )


def down_projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the down projection of each layer, from the first to the last.

    The model may also be one of vLLM's, or have an adapter.

    Raises:
        InputError: the architecture's MLPs are not known.
    """
    pattern = re.compile(rf"\.(\d+)\.(?:{'|'.join(map(re.escape, DOWN_PROJECTIONS))})$")
    matches = [(pattern.search(name), module) for name, module in model.named_modules()]
    projections = [(int(match[1]), module) for match, module in matches if match is not None]
    layers = sorted(layer for layer, _ in projections)
    if not projections or layers != list(range(len(projections))):
        # This also refuses a mixture of experts in some layers, and a second stack of layers such as one for images.
        found = f"such modules are in layers {', '.join(map(str, layers))}" if projections else "it has none"
        raise InputError(
            f"the MLPs of a {type(model).__name__} are not known: each layer must have one module named "
            f"{' or '.join(DOWN_PROJECTIONS)}, but {found}. Add the name of its down projection to DOWN_PROJECTIONS in "
            "xgray/mechanism/neurons.py."
        )
    return [module for _, module in sorted(projections, key=lambda projection: projection[0])]


def value_vectors(projection: torch.nn.Module) -> torch.Tensor:
    """Return the value vectors of a layer, ``(num_neurons, hidden_size)``, with what active adapters add to them.

    Without an adapter they are a view of the projection's weight.
    """
    plain = getattr(projection, "base_layer", projection)
    weight: torch.Tensor = plain.weight
    if plain is not projection and not projection.merged and not projection.disable_adapters:
        for adapter in projection.active_adapters:
            weight = weight + projection.get_delta_weight(adapter)
    # The weight of a Conv1D is (in, out); that of a Linear, and of vLLM's layers, is (out, in).
    return weight if type(plain).__name__ == "Conv1D" else weight.T


def written_vectors(layer: torch.nn.Module, projection: torch.nn.Module) -> torch.Tensor:
    """Return the directions in which a layer's neurons write into the residual stream.

    Without a norm after the MLP these are the value vectors. With one, each value vector is multiplied by the norm's
    gain. The norm also divides by the length of the whole MLP output of a token, which is one number for all neurons
    and changes no direction.

    Returns:
        ``(num_neurons, hidden_size)`` in float32.
    """
    import torch

    vectors = value_vectors(projection).float()
    norm = next((getattr(layer, name) for name in NORMS_AFTER_MLP if hasattr(layer, name)), None)
    if norm is None:
        return vectors
    # A root-mean-square norm maps ones to its gain, whether that is its weight or, as in Gemma, its weight plus 1.
    gain: torch.Tensor = norm(torch.ones(vectors.shape[1], device=vectors.device))
    return vectors * gain.float()


def check_neurons(neurons: Sequence[Neuron], model: torch.nn.Module, where: str) -> None:
    """Check that the model has all neurons and that none is listed twice.

    Args:
        where: name of the list of neurons, for the error message.

    Raises:
        InputError: a neuron is outside the model or listed twice.
    """
    sizes = [value_vectors(projection).shape[0] for projection in down_projections(model)]
    if len(set(neurons)) < len(neurons):
        repeated = next(neuron for neuron in neurons if list(neurons).count(neuron) > 1)
        raise InputError(f"{where}: neuron {list(repeated)} is listed twice. Remove one of the entries.")
    for layer, index in neurons:
        if not (0 <= layer < len(sizes) and 0 <= index < sizes[layer]):
            raise InputError(
                f"{where}: no neuron {[layer, index]}: the model has {len(sizes)} layers of {sizes[0]} neurons, "
                "counted from 0."
            )


QUANTIZES_ACTIVATIONS = ("fp8", "fbgemm_fp8", "modelopt", "modelopt_fp4", "fp_quant", "bitnet")
"""Quantization methods, as checkpoints name them, in which activations are always quantized."""


def activation_quantization(config: Any) -> str | None:
    """Return the name of a checkpoint's quantization if it covers activations too; None if it does not.

    Args:
        config: the model's Hugging Face configuration.
    """
    quantization = getattr(config, "quantization_config", None) or {}
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(values.get("quant_method", ""))
    groups = (values.get("config_groups") or {}).values()
    is_of_layers = any(group.get("input_activations") for group in groups if isinstance(group, dict))  # w8a8 and others
    is_of_quark = bool((values.get("global_quant_config") or {}).get("input_tensors"))
    return method if method in QUANTIZES_ACTIVATIONS or is_of_layers or is_of_quark else None


def check_editable(config: Any, model: str) -> None:
    """Refuse to edit neurons in vLLM where it quantizes activations: what a down projection then reads are no neurons.

    Args:
        config: the model's Hugging Face configuration.
        model: its id, for the message.

    Raises:
        InputError: names the quantization.
    """
    if (method := activation_quantization(config)) is not None:
        raise InputError(
            f"model.id: the activations of {model} are quantized ({method}), and its neurons cannot be edited in vLLM. "
            "Take a checkpoint whose weights alone are quantized or none are, or leave out the section intervene."
        )


def actual_sources(vectors: Folder) -> list[Neuron]:
    """Return the actual sources of toxicity, which may be none, from the folder of the finished stage ``vectors``."""
    return [(int(layer), int(index)) for layer, index in vectors.read_mapping("metrics.json")["sources"]]


def _positions_by_layer(neurons: Sequence[Neuron]) -> dict[int, list[int]]:
    """Return, for each layer, the positions of its neurons in the list."""
    positions: dict[int, list[int]] = {}
    for position, (layer, _) in enumerate(neurons):
        positions.setdefault(layer, []).append(position)
    return positions


@contextmanager
def capturing(
    model: torch.nn.Module, neurons: Sequence[Neuron], take: Callable[[list[int], torch.Tensor], None]
) -> Iterator[None]:
    """Pass the neurons' activations of every forward pass within the ``with`` block to ``take``, layer by layer.

    Args:
        take: called with positions in ``neurons`` and these neurons' activations, ``(batch, seq, num_positions)``, in
            the model's precision. Nothing is kept but what it keeps.
    """
    import torch

    projections, handles = down_projections(model), []
    for layer, positions in _positions_by_layer(neurons).items():
        indices = torch.tensor([neurons[position][1] for position in positions])

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
    """Apply an edit in every forward pass from now on, until the returned handles are removed.

    An offset of 0 and a multiplier of 1 leave every activation unchanged, bit for bit.
    """
    import torch

    projections, handles = down_projections(model), []
    for layer, positions in _positions_by_layer(edit.neurons).items():
        indices = torch.tensor([edit.neurons[position][1] for position in positions])

        def hook(
            module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], indices: torch.Tensor = indices
        ) -> tuple[torch.Tensor, ...]:
            activations = inputs[0].clone()
            local_indices = indices.to(activations.device)
            values = activations[..., local_indices]
            if edit.multiplier != 1:
                values = values * edit.multiplier
            if edit.offset != 0:  # adding 0 would turn -0 into 0
                values = values + edit.offset
            activations[..., local_indices] = values
            return (activations, *inputs[1:])

        handles.append(projections[layer].register_forward_pre_hook(hook))
    return handles


@contextmanager
def edited(model: torch.nn.Module, edit: Edit) -> Iterator[None]:
    """Apply an edit to the model within the ``with`` block; see :func:`install`."""
    handles = install(model, edit)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
