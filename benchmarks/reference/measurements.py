"""Independent computations of what xgray measures inside the network: one text at a time, without cache or padding.

``benchmarks/parity.py`` and the tests compare xgray with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import gelu, silu

from xgray.config import Neuron
from xgray.mechanism.neurons import capturing, down_projections, value_vectors, written_vectors

NORM_BEFORE_MLP = {"gpt2": "ln_2", "cohere": "input_layernorm", "gemma3_text": "pre_feedforward_layernorm"}
"""Name of the norm before the MLP, by model type; ``post_attention_layernorm`` in all others."""


def all_neurons(model: torch.nn.Module) -> list[Neuron]:
    """Return all neurons of the model, layer by layer."""
    return [
        (layer, index)
        for layer, projection in enumerate(down_projections(model))
        for index in range(len(value_vectors(projection)))
    ]


def captured(model: Any, neurons: Sequence[Neuron], **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the activations that xgray captures, ``(batch, seq, num_neurons)``, and the logits."""
    activations = torch.zeros(*inputs["input_ids"].shape, len(neurons), dtype=model.dtype)

    def take(columns: list[int], values: torch.Tensor) -> None:
        activations[..., columns] = values

    with torch.no_grad(), capturing(model, neurons, take):
        logits = model(**inputs).logits
    return activations, logits


def layer_differences(kind: str, model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Compare xgray's activations and value vectors with what the model's layers compute.

    The residual stream before the MLP, plus the activations times the written value vectors, must be the layer's
    output.

    Args:
        kind: the model type, one of :data:`benchmarks.reference.tiny_models.CONFIGS`.
        ids: token ids, ``(batch, seq)``.

    Returns:
        The largest relative difference of the activations from the formulas of the MLP, and of the residual stream
        after each layer from the sum above.
    """
    layers = model.transformer.h if kind in ("gpt2", "bloom") else model.model.layers
    activations, streams, mlp_inputs, attention_outputs, layer_outputs = _run_layers(kind, model, layers, ids)
    activation_differences, stream_differences = [], []
    for layer, (module, projection) in enumerate(zip(layers, down_projections(model), strict=True)):
        layer_activations = activations[:, :, layer]
        with torch.no_grad():
            expected = _mlp_activations(kind, module.mlp, mlp_inputs[layer])
            activation_differences.append(difference(layer_activations, expected))
            added = layer_activations @ written_vectors(module, projection)
            if getattr(projection, "bias", None) is not None:
                added = added + projection.bias
            if kind == "cohere":
                added = added + attention_outputs[layer]
            if kind == "gemma3_text":  # the norm after the MLP divides by the root mean square of its output
                mlp_output = layer_activations @ value_vectors(projection)
                added = added / (mlp_output.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            stream_differences.append(difference(streams[layer] + added, layer_outputs[layer]))
    return max(activation_differences), max(stream_differences)


def _run_layers(
    kind: str, model: Any, layers: Any, ids: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Run the model once, and record inside each layer.

    Returns:
        The captured activations, ``(batch, seq, num_layers, num_neurons)``; and of each layer, ``(batch, seq,
        hidden_size)``, the residual stream before the MLP's norm, the MLP's input, the attention's output (Cohere
        only, where attention and MLP are parallel), and the layer's output.
    """
    streams: list[torch.Tensor] = []
    mlp_inputs: list[torch.Tensor] = []
    attention_outputs: list[torch.Tensor] = []
    layer_outputs: list[torch.Tensor] = []
    handles = []
    for module in layers:
        norm = module.get_submodule(NORM_BEFORE_MLP.get(kind, "post_attention_layernorm"))
        handles += [
            norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0])),
            module.mlp.register_forward_pre_hook(lambda _, inputs: mlp_inputs.append(inputs[0])),
            module.register_forward_hook(lambda _, inputs, output: layer_outputs.append(_first_output(output))),
        ]
        if kind == "cohere":
            handles.append(
                module.self_attn.register_forward_hook(lambda _, inputs, output: attention_outputs.append(output[0]))
            )
    activations, _ = captured(model, all_neurons(model), input_ids=ids)
    for handle in handles:
        handle.remove()
    return activations.reshape(*ids.shape, len(layers), -1), streams, mlp_inputs, attention_outputs, layer_outputs


def _mlp_activations(kind: str, mlp: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Compute the activations of an MLP from its weights by the textbook formulas, ``(batch, seq, num_neurons)``."""
    if kind == "gpt2":
        return gelu(inputs @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh")
    if kind == "bloom":
        return gelu(inputs @ mlp.dense_h_to_4h.weight.T + mlp.dense_h_to_4h.bias, approximate="tanh")
    gate, up = inputs @ mlp.gate_proj.weight.T, inputs @ mlp.up_proj.weight.T
    return (gelu(gate, approximate="tanh") if kind.startswith("gemma") else silu(gate)) * up


def greedy_activations(
    model: Any, tokenizer: Any, text: str, neurons: Sequence[Neuron], new_tokens: int
) -> tuple[np.ndarray, list[int]]:
    """Continue a text greedily, running the whole prefix through the model for each token.

    Returns:
        The activations at the last position of each prefix, ``(num_tokens, num_neurons)``, and the generated tokens.
    """
    ids = tokenizer(text, return_tensors="pt").input_ids
    num_prompt_tokens, rows = ids.shape[1], []
    inputs_of: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, layer=layer: inputs_of.update({layer: inputs[0]}))
        for layer, module in enumerate(down_projections(model))
    ]
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits
            rows.append([inputs_of[layer][0, -1, index].item() for layer, index in neurons])
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == model.generation_config.eos_token_id:
                break
    for handle in handles:
        handle.remove()
    return np.array(rows), ids[0, num_prompt_tokens:].tolist()


def mean_hidden_states(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """Return the mean over a text's tokens of the hidden states that transformers returns.

    Returns:
        ``(num_layers + 1, hidden_size)``: the embeddings and every layer.
    """
    with torch.no_grad():
        output = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
    return np.stack([states[0].double().mean(dim=0).numpy() for states in output.hidden_states])


def residual_without_norm(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """Return the mean residual stream of a text before the final norm, ``(hidden_size,)``.

    The final norm is replaced by the identity for the forward pass.
    """
    name = next(name for name in ("norm", "ln_f") if hasattr(model.base_model, name))
    norm = getattr(model.base_model, name)
    setattr(model.base_model, name, torch.nn.Identity())
    states = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state
    setattr(model.base_model, name, norm)
    mean: np.ndarray = states[0].mean(0).detach().numpy()
    return mean


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference of two arrays, relative to the largest absolute value of ``expected``."""
    return float(abs(found - expected).max() / abs(expected).max())


def _first_output(output: Any) -> torch.Tensor:
    states: torch.Tensor = output if torch.is_tensor(output) else output[0]
    return states
