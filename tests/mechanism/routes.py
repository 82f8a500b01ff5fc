"""What xgray measures inside the network, by other routes: from the modules' own in- and outputs, a text at a time."""

import numpy as np
import torch
from torch.nn.functional import gelu, silu

from xgray.mechanism.neurons import capturing, down_projections, value_vectors, written_vectors

NORM_BEFORE_MLP = {"gpt2": "ln_2", "cohere": "input_layernorm", "gemma3_text": "pre_feedforward_layernorm"}


def everything(model):
    """All neurons of the model, a layer after the other."""
    return [
        (layer, index) for layer, one in enumerate(down_projections(model)) for index in range(len(value_vectors(one)))
    ]


def captured(model, neurons, **inputs):
    """xgray's own: the activations, ``(batch, tokens, neurons)``, and the logits."""
    found = torch.zeros(*inputs["input_ids"].shape, len(neurons), dtype=model.dtype)

    def take(columns, activations):
        found[..., columns] = activations

    with torch.no_grad(), capturing(model, neurons, take):
        logits = model(**inputs).logits
    return found, logits


def differences_by_layer(kind, model, ids):
    """Of xgray's activations from the formulas', and of the streams that they make from those that the blocks give out.

    The stream before the MLP, and the activations times the value vectors, must add up to what the block gives out.
    """
    blocks = model.transformer.h if kind in ("gpt2", "bloom") else model.model.layers
    streams, inputs, attended, written, handles = [], [], [], [], []
    for block in blocks:
        before = block.get_submodule(NORM_BEFORE_MLP.get(kind, "post_attention_layernorm"))
        handles += [
            before.register_forward_pre_hook(lambda _, given: streams.append(given[0])),
            block.mlp.register_forward_pre_hook(lambda _, given: inputs.append(given[0])),
            block.register_forward_hook(lambda _, given, made: written.append(_stream(made))),
        ]
        if kind == "cohere":  # attention and MLP stand side by side
            handles.append(block.self_attn.register_forward_hook(lambda _, given, made: attended.append(made[0])))
    found, _ = captured(model, everything(model), input_ids=ids)
    found = found.reshape(*ids.shape, len(blocks), -1)
    for handle in handles:
        handle.remove()
    activations, stream = [], []
    for layer, (block, projection) in enumerate(zip(blocks, down_projections(model), strict=True)):
        with torch.no_grad():
            activations.append(difference(found[:, :, layer], by_hand(kind, block.mlp, inputs[layer])))
            added = found[:, :, layer] @ written_vectors(block, projection)
            if getattr(projection, "bias", None) is not None:
                added = added + projection.bias
            if kind == "cohere":
                added = added + attended[layer]
            if kind == "gemma3_text":  # what arrives is over the length of all that the MLP writes
                raw = found[:, :, layer] @ value_vectors(projection)
                added = added / (raw.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
            stream.append(difference(streams[layer] + added, written[layer]))
    return max(activations), max(stream)


def by_hand(kind, mlp, inputs):
    """The activations of an MLP from the text-book's formulas and its weights."""
    if kind == "gpt2":
        return gelu(inputs @ mlp.c_fc.weight + mlp.c_fc.bias, approximate="tanh")
    if kind == "bloom":
        return gelu(inputs @ mlp.dense_h_to_4h.weight.T + mlp.dense_h_to_4h.bias, approximate="tanh")
    gate, up = inputs @ mlp.gate_proj.weight.T, inputs @ mlp.up_proj.weight.T
    return (gelu(gate, approximate="tanh") if kind.startswith("gemma") else silu(gate)) * up


def one_by_one(model, tokenizer, text, neurons, new_tokens):
    """The activations at the last position of each prefix, read anew, ``(tokens, neurons)``, and the greedy tokens."""
    ids, rows = tokenizer(text, return_tensors="pt").input_ids, []
    read = {}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, layer=layer: read.update({layer: inputs[0]}))
        for layer, module in enumerate(down_projections(model))
    ]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits
            rows.append([read[layer][0, -1, index].item() for layer, index in neurons])
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == model.generation_config.eos_token_id:
                break
    for handle in handles:
        handle.remove()
    return np.array(rows), ids[0, start:].tolist()


def hidden_states(model, tokenizer, text):
    """What transformers itself gives out of one text, all layers at once: ``(num_layers, hidden_size)``."""
    with torch.no_grad():
        made = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
    return np.stack([one[0].double().mean(dim=0).numpy() for one in made.hidden_states])


def residual_without_norm(model, tokenizer, text):
    """The mean residual stream, ``(hidden_size,)``, of a model whose final norm does nothing: its last hidden state."""
    name = next(one for one in ("norm", "ln_f") if hasattr(model.base_model, one))
    norm = getattr(model.base_model, name)
    setattr(model.base_model, name, torch.nn.Identity())
    states = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state
    setattr(model.base_model, name, norm)
    return states[0].mean(0).detach().numpy()


def difference(found, expected):
    """The largest one, relative to the largest number that was expected."""
    return float(abs(found - expected).max() / abs(expected).max())


def _stream(output):
    return output if torch.is_tensor(output) else output[0]
