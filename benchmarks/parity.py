"""What is measured inside the network, by architecture, against other routes: the largest relative differences.

    python -m benchmarks.parity

Tiny random models in float32, all routes from the modules' own in- and outputs and a text at a time:

    activations   of all neurons, against the MLP's formulas
    stream        of each block, against the one before its MLP with activations times value vectors added
    generated     means over 12 greedy tokens with a cache, in a padded batch, against reading each prefix anew
    residual      the probe's features in a padded batch, against a model whose final norm does nothing
    states        retrieval's, of all layers in a padded batch, against what each block is given
    lens          activations against transformer_lens, where it is installed (2.x) and reads the architecture
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from tests.mechanism.routes import (
    captured,
    difference,
    differences_by_layer,
    everything,
    hidden_states,
    one_by_one,
    residual_without_norm,
)
from tests.mechanism.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.mechanism.activations import measure_activations
from xgray.mechanism.probe import text_features
from xgray.mechanism.retrieval.states import encode

TEXTS = ["a longer text of some words", "b", "another", "two words", "闭嘴", "Mon patron, toujours"]
NEURONS = [(2, 5), (0, 47), (2, 0), (1, 30)]
NEW_TOKENS = 12
TOLERANCE = 1e-5
ROTARY = {
    "d_mlp": 48, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "final_rms": True, "eps": 1e-6,
    "positional_embedding_type": "rotary", "rotary_dim": 8, "rotary_base": 10000, "rotary_adjacent_pairs": False,
    "n_key_value_heads": 2,
}  # fmt: skip
LENS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "convert_gpt2_weights",
        {"d_mlp": 128, "act_fn": "gelu_new", "normalization_type": "LN", "positional_embedding_type": "standard"},
    ),
    "bloom": (
        "convert_bloom_weights",
        {
            "d_mlp": 128, "act_fn": "gelu_fast", "normalization_type": "LN", "positional_embedding_type": "alibi",
            "post_embedding_ln": True,
        },
    ),
    "llama": ("convert_llama_weights", ROTARY | {"original_architecture": "LlamaForCausalLM"}),
    "qwen2": ("convert_qwen2_weights", ROTARY | {"original_architecture": "Qwen2ForCausalLM"}),
    "gemma": (
        "convert_gemma_weights",
        ROTARY | {"act_fn": "gelu_new", "original_architecture": "GemmaForCausalLM"},
    ),
}  # fmt: skip
"""How transformer_lens converts the weights, and its configuration beside the sizes."""


def differences(kind: str) -> dict[str, float]:
    model, tokenizer = make_model(kind), make_tokenizer()
    ids = torch.randint(1, 257, (2, 9), generator=torch.Generator().manual_seed(1))
    activations, stream = differences_by_layer(kind, model, ids)
    generated, _ = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, batch_size=4)
    anew = np.stack([one_by_one(model, tokenizer, text, NEURONS, NEW_TOKENS)[0].mean(axis=0) for text in TEXTS])
    features, _ = text_features(model, tokenizer, TEXTS, 64, batch_size=4)
    residual = np.stack([residual_without_norm(model, tokenizer, text) for text in TEXTS])
    states = encode(model, tokenizer, TEXTS, max_tokens=64, batch_size=4).states
    at_once = np.stack([hidden_states(model, tokenizer, text) for text in TEXTS], axis=1)
    return {
        "activations": activations,
        "stream": stream,
        "generated": difference(generated, anew),
        "residual": difference(features, residual),
        "states": difference(states, at_once),
    } | ({"lens": in_lens(kind, model, ids)} if find_spec("transformer_lens") and kind in LENS else {})


def in_lens(kind: str, model: Any, ids: torch.Tensor) -> float:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    convert, own = LENS[kind]
    sizes = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 257, "n_ctx": 64}
    config = HookedTransformerConfig(**sizes, **own, device="cpu", default_prepend_bos=False)
    lens = HookedTransformer(config)
    lens.load_state_dict(getattr(weight_conversions, convert)(model, config), strict=False)
    with torch.no_grad():
        _, cache = lens.eval().run_with_cache(ids)
    found = captured(model, everything(model), input_ids=ids)[0].reshape(*ids.shape, 3, -1)
    return max(difference(found[:, :, layer], cache[f"blocks.{layer}.mlp.hook_post"]) for layer in range(3))


def main() -> None:
    columns = ("activations", "stream", "generated", "residual", "states", "lens")
    print(f"{'':14}" + "".join(f"{name:>14}" for name in columns))
    worst = 0.0
    for kind in CONFIGS:
        told = differences(kind)
        worst = max(worst, *told.values())
        print(f"{kind:14}" + "".join(f"{told[name]:>14.1e}" if name in told else f"{'':>14}" for name in columns))
    print(f"largest: {worst:.1e}")
    assert worst < TOLERANCE


if __name__ == "__main__":
    main()
