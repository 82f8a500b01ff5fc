"""Compare what xgray measures inside the network with independent computations: the largest relative differences.

    python -m benchmarks.parity

A row for each architecture, with a tiny random model in float32. The columns are:

    activations   activations of all neurons, against the formulas of the MLP
    stream        residual stream after each layer, against the one before its MLP plus activations times value vectors
    generated     mean activations over 12 greedy tokens in a padded batch with a cache, against a run per prefix
    residual      the probe's features in a padded batch, against a model whose final norm is the identity
    states        retrieval's sentence states in a padded batch, against the hidden states that transformers returns
    lens          activations, against transformer_lens where it is installed (2.x) and supports the architecture

The other side always processes one text at a time, without padding.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.reference.measurements import (
    all_neurons,
    captured,
    difference,
    greedy_activations,
    layer_differences,
    mean_hidden_states,
    residual_without_norm,
)
from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.mechanism.activations import measure_activations
from xgray.mechanism.probe import text_features
from xgray.mechanism.retrieval.states import encode

TEXTS = ["a longer text of some words", "b", "another", "two words", "闭嘴", "Mon patron, toujours"]
NEURONS = [(2, 5), (0, 47), (2, 0), (1, 30)]
NEW_TOKENS = 12
TOLERANCE = 1e-5
ROTARY = {
    "d_mlp": 48,
    "act_fn": "silu",
    "gated_mlp": True,
    "normalization_type": "RMS",
    "final_rms": True,
    "eps": 1e-6,
    "positional_embedding_type": "rotary",
    "rotary_dim": 8,
    "rotary_base": 10000,
    "rotary_adjacent_pairs": False,
    "n_key_value_heads": 2,
}
"""Settings of all architectures with rotary positions."""
LENS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "convert_gpt2_weights",
        {"d_mlp": 128, "act_fn": "gelu_new", "normalization_type": "LN", "positional_embedding_type": "standard"},
    ),
    "bloom": (
        "convert_bloom_weights",
        {
            "d_mlp": 128,
            "act_fn": "gelu_fast",
            "normalization_type": "LN",
            "positional_embedding_type": "alibi",
            "post_embedding_ln": True,
        },
    ),
    "llama": ("convert_llama_weights", ROTARY | {"original_architecture": "LlamaForCausalLM"}),
    "qwen2": ("convert_qwen2_weights", ROTARY | {"original_architecture": "Qwen2ForCausalLM"}),
    "gemma": (
        "convert_gemma_weights",
        ROTARY | {"act_fn": "gelu_new", "original_architecture": "GemmaForCausalLM"},
    ),
}
"""By architecture, the function of transformer_lens that converts the weights, and its settings besides the sizes."""


def differences(kind: str) -> dict[str, float]:
    """Return the largest relative difference of each column, for one architecture."""
    model, tokenizer = make_model(kind), make_tokenizer()
    ids = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(1))
    activations, stream = layer_differences(kind, model, ids)
    generated, _ = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, batch_size=4)
    by_prefix = [greedy_activations(model, tokenizer, text, NEURONS, NEW_TOKENS)[0].mean(axis=0) for text in TEXTS]
    features, _ = text_features(model, tokenizer, TEXTS, 64, batch_size=4)
    residual = np.stack([residual_without_norm(model, tokenizer, text) for text in TEXTS])
    states = encode(model, tokenizer, TEXTS, max_tokens=64, batch_size=4).states
    hidden_states = np.stack([mean_hidden_states(model, tokenizer, text) for text in TEXTS], axis=1)
    found = {
        "activations": activations,
        "stream": stream,
        "generated": difference(generated, np.stack(by_prefix)),
        "residual": difference(features, residual),
        "states": difference(states, hidden_states),
    }
    if find_spec("transformer_lens") and kind in LENS:
        found["lens"] = difference_from_lens(kind, model, ids)
    return found


def difference_from_lens(kind: str, model: Any, ids: torch.Tensor) -> float:
    """Return the largest relative difference of all activations from those of transformer_lens."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    convert, settings = LENS[kind]
    sizes = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 257, "n_ctx": 64}
    config = HookedTransformerConfig(**sizes, **settings, device="cpu", default_prepend_bos=False)
    lens = HookedTransformer(config)
    lens.load_state_dict(getattr(weight_conversions, convert)(model, config), strict=False)
    with torch.no_grad():
        _, cache = lens.eval().run_with_cache(ids)
    activations = captured(model, all_neurons(model), input_ids=ids)[0].reshape(*ids.shape, 3, -1)
    return max(difference(activations[:, :, layer], cache[f"blocks.{layer}.mlp.hook_post"]) for layer in range(3))


def main() -> None:
    columns = ("activations", "stream", "generated", "residual", "states", "lens")
    print(f"{'':14}" + "".join(f"{name:>14}" for name in columns))
    worst = 0.0
    for kind in CONFIGS:
        found = differences(kind)
        worst = max(worst, *found.values())
        print(f"{kind:14}" + "".join(f"{found[name]:>14.1e}" if name in found else f"{'':>14}" for name in columns))
    print(f"largest: {worst:.1e}")
    assert worst < TOLERANCE


if __name__ == "__main__":
    main()
