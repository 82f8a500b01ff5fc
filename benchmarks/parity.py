"""Compare what xgray measures inside the network with independent computations: the largest relative differences.

    python -m benchmarks.parity

A row for each architecture, with a tiny random model in float32. The columns are:

    activations   activations of all neurons, against the formulas of the MLP
    stream        residual stream after each layer, against the one before its MLP plus activations times value vectors
    generated     mean activations over 12 greedy tokens in a padded batch with a cache, against a run per prefix
    residual      the probe's features in a padded batch, against a model whose final norm is the identity
    states        retrieval's sentence states in a padded batch, against the hidden states that transformers returns
    lens          activations, against transformer_lens where it is installed (2.x) and supports the architecture
    lens released mean activations after prompts under the protocol released, against transformer_lens as the paper's
                  script calls it: it reads the texts itself, with the beginning that it gives the architecture

The other side always processes one text at a time, without padding.

A second table has a row for each measure, over the architectures that it knows: its largest difference from what the
paper's scripts compute under ``released``, and from an independent route under ``corrected``
(``benchmarks/reference/protocols.py``).

A third table is of preference pairs in one row that share their prompts: the log-probabilities of completions and the
gradient of DPO's mean loss, with logits that are kept and with TRL's head, against transformers' logits of one sequence
at a time.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import isnan
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from benchmarks.reference.measurements import (
    all_neurons,
    captured,
    difference,
    greedy_activations,
    layer_differences,
    mean_hidden_states,
    residual_without_norm,
)
from benchmarks.reference.protocols import NEURONS, NEW_TOKENS, OF_MODELS, OTHERS, TEXTS, Pair
from benchmarks.reference.tiny_models import CONFIGS, make_model, make_tokenizer
from xgray.mechanism.activations import measure_activations
from xgray.mechanism.probe import text_features
from xgray.mechanism.retrieval.states import encode
from xgray.train.forward import PairForward
from xgray.train.pairs import TokenizedPair

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
            "default_prepend_bos": False,
        },
    ),
    "llama": ("convert_llama_weights", ROTARY | {"original_architecture": "LlamaForCausalLM"}),
    "qwen2": (
        "convert_qwen2_weights",
        ROTARY | {"original_architecture": "Qwen2ForCausalLM", "default_prepend_bos": False},
    ),
    "gemma": (
        "convert_gemma_weights",
        ROTARY | {"act_fn": "gelu_new", "original_architecture": "GemmaForCausalLM"},
    ),
}
"""By architecture, the function of transformer_lens that converts the weights, and its settings other than the sizes.

A setting that is not named, such as the beginning of a text, is the library's own.
"""


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
        lens = lens_of(kind, model)
        found["lens"] = difference_from_lens(lens, model, ids)
        found["lens released"] = released_difference_from_lens(kind, lens, model)
    return found


def lens_of(kind: str, model: Any) -> Any:
    """Return the same model in transformer_lens."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    convert, settings = LENS[kind]
    sizes = {"n_layers": 3, "d_model": 32, "n_heads": 4, "d_head": 8, "d_vocab": 257, "n_ctx": 64}
    config = HookedTransformerConfig(**sizes, **settings, device="cpu")
    lens = HookedTransformer(config)
    lens.load_state_dict(getattr(weight_conversions, convert)(model, config), strict=False)
    return lens.eval()


def difference_from_lens(lens: Any, model: Any, ids: torch.Tensor) -> float:
    """Return the largest relative difference of all activations from those of transformer_lens."""
    with torch.no_grad():
        _, cache = lens.run_with_cache(ids)
    activations = captured(model, all_neurons(model), input_ids=ids)[0].reshape(*ids.shape, 3, -1)
    return max(difference(activations[:, :, layer], cache[f"blocks.{layer}.mlp.hook_post"]) for layer in range(3))


def released_difference_from_lens(kind: str, lens: Any, model: Any) -> float:
    """Return the largest relative difference of ``released`` mean activations from transformer_lens's.

    transformer_lens reads each text itself, and the whole prefix runs through the model for every token, past its end.
    The tokenizers of Llama and Gemma put a beginning before a text.
    """
    tokenizer = make_tokenizer("<end>", begins=kind in ("llama", "gemma"))
    tokenizer.pad_token = "<end>"  # the script pads with the end of text
    lens.tokenizer, lens.cfg.tokenizer_prepends_bos = tokenizer, kind in ("llama", "gemma")
    expected = []
    for text in TEXTS:
        ids, rows = lens.to_tokens(text), []
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                logits, cache = lens.run_with_cache(ids)
                rows.append([cache[f"blocks.{layer}.mlp.hook_post"][0, -1, index].item() for layer, index in NEURONS])
                ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        expected.append(np.mean(rows, axis=0))
    found, _ = measure_activations(model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, 4, protocol="released")
    return difference(found, np.stack(expected))


def protocols() -> dict[str, Pair]:
    """Return both differences of each measure, the largest over the architectures that it knows."""
    found: dict[str, Pair] = {name: compare() for name, compare in OTHERS.items()}
    for name, of_model in OF_MODELS.items():
        pairs = [pair for kind in CONFIGS if (pair := of_model(kind, make_model(kind))) is not None]
        released, corrected = ([value for value in column if not isnan(value)] for column in zip(*pairs, strict=True))
        found[name] = max(released, default=float("nan")), max(corrected, default=float("nan"))
    return found


def pair_differences(kind: str) -> dict[str, float]:
    """Return the relative differences of shared rows of pairs, for one architecture."""
    model, generator = make_model(kind), torch.Generator().manual_seed(2)
    pairs = [
        TokenizedPair(*(torch.randint(1, 257, (length,), generator=generator).tolist() for length in lengths))
        for lengths in ((5, 7, 9), (1, 1, 2), (12, 30, 3), (20, 4, 40))
    ]
    alone = [
        model(input_ids=torch.tensor([pair.prompt_ids + ids])).logits[0, len(pair.prompt_ids) - 1 : -1]
        .log_softmax(dim=1).gather(1, torch.tensor(ids)[:, None]).sum()
        for side in ("chosen_ids", "rejected_ids") for pair in pairs for ids in [getattr(pair, side)]
    ]  # fmt: skip
    expected, expected_gradient = _gradient(model, torch.stack(alone))
    found = {}
    for name, keeps_logits in (("kept logits", True), ("TRL's head", False)):
        model = make_model(kind)
        with PairForward(model, 64).computing(pairs, torch.device("cpu")) as batch:
            batch.keeps_logits = keeps_logits
            log_probs, gradient = _gradient(model, batch.log_probs(model))
        found[name] = difference(log_probs, expected)
        found[f"gradient, {name}"] = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    return found


def _gradient(model: Any, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and the gradient of DPO's mean loss against a reference of 0."""
    chosen, rejected = log_probs.chunk(2)
    (-logsigmoid(0.1 * (chosen - rejected))).mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return log_probs.detach(), torch.cat(gradients)


def main() -> None:
    columns = ("activations", "stream", "generated", "residual", "states", "lens", "lens released")
    print(f"{'':14}" + "".join(f"{name:>14}" for name in columns))
    worst = 0.0
    for kind in CONFIGS:
        found = differences(kind)
        worst = max(worst, *found.values())
        print(f"{kind:14}" + "".join(f"{found[name]:>14.1e}" if name in found else f"{'':>14}" for name in columns))
    print(f"\n{'':26}{'released':>14}{'corrected':>14}")
    for name, pair in protocols().items():
        worst = max(worst, *(value for value in pair if not isnan(value)))
        print(f"{name:26}" + "".join(f"{_in_words(value):>14}" for value in pair))
    print()
    for number, kind in enumerate(CONFIGS):
        found = pair_differences(kind)
        worst = max(worst, *found.values())
        if not number:
            print(f"{'':14}" + "".join(f"{name:>22}" for name in found))
        print(f"{kind:14}" + "".join(f"{value:>22.1e}" for value in found.values()))
    print(f"\nlargest: {worst:.1e}")
    assert worst < TOLERANCE


def _in_words(value: float) -> str:
    return "-" if isnan(value) else "identical" if value == 0 else f"{value:.1e}"


if __name__ == "__main__":
    main()
