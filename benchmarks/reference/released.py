"""What the paper's scripts compute, step by step and one text at a time, as an independent route to ``released``.

Written from what the scripts do (BatsResearch/cross-lingual-detox, and TRL 0.8.6 for DPO's input); no code is theirs.
``benchmarks/parity.py`` and the tests compare xgray with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, random_split

from benchmarks.reference.measurements import captured
from xgray.config import Neuron, Probe
from xgray.mechanism.neurons import down_projections

IdsAndLabels = dict[str, tuple[list[int], list[int]]]
"""Token ids of the chosen and the rejected side, and labels, which are -100 where the loss does not count."""


def dpo_input(pair: Any, tokenizer: Any, max_length: int = 256, max_prompt_length: int = 64) -> IdsAndLabels:
    """Return the ids and labels of both sides of a pair, in the steps of TRL 0.8.6's DPO trainer."""

    def ids(text: str) -> list[int]:
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    sides = {}
    for name, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        prompt, whole = ids(pair.prompt), ids(pair.prompt + completion)
        start = len(prompt) if whole[: len(prompt)] == prompt else len(prompt) - 1
        prompt, answer = whole[:start], whole[start:]
        if tokenizer.bos_token_id is not None:
            prompt = [tokenizer.bos_token_id, *prompt]
        sides[name] = [prompt, [*answer, tokenizer.eos_token_id]]
    longer = max(len(answer) for _, answer in sides.values())
    for side in sides.values():
        if len(side[0]) + longer > max_length:
            side[0] = side[0][-max_prompt_length:]
        if len(side[0]) + longer > max_length:
            side[1] = side[1][: max_length - max_prompt_length]
    return {name: (prompt + answer, [-100] * len(prompt) + answer) for name, (prompt, answer) in sides.items()}


def ids_and_labels(pair: Any) -> IdsAndLabels:
    """Return the same of one of xgray's tokenized pairs."""
    sides = {}
    for name, completion, uncounted in (
        ("chosen", pair.chosen_ids, pair.chosen_uncounted),
        ("rejected", pair.rejected_ids, pair.rejected_uncounted),
    ):
        begin, ids = len(pair.prompt_ids) + uncounted, pair.prompt_ids + completion
        sides[name] = ids, [-100] * begin + ids[begin:]
    return sides


def lora_names(model: Any, kind: str) -> set[str]:
    """Return the modules that the script's names adapt; it knows BLOOM, Llama and Aya."""
    blocks = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
    bloom = ("word_embeddings", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    targets = bloom if kind == "bloom" else blocks
    return {name for name, _ in model.named_modules() if name.rpartition(".")[2] in targets}


def probe_training(
    features: np.ndarray, toxic: np.ndarray, section: Probe, seed: int, first: np.ndarray
) -> tuple[np.ndarray, list[float], list[int], list[int]]:
    """Train the probe in the steps of the paper's script, over a data set of (row, label).

    Args:
        features: of all texts, ``(num_texts, hidden_size)``.
        toxic: their labels.
        first: the weights to start from.

    Returns:
        The weights of the best epoch, the validation loss of each epoch, and the positions of the texts on both sides.
    """
    data = [(torch.from_numpy(row), float(label)) for row, label in zip(features, toxic, strict=True)]
    head = torch.nn.Linear(features.shape[1], 1, bias=False)
    head.weight.data[0] = torch.from_numpy(first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit, held_out = random_split(data, [int(0.9 * len(data)), len(data) - int(0.9 * len(data))])
        loaders = [DataLoader(fit, section.batch_size, shuffle=True), DataLoader(held_out, section.batch_size)]
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-6)
        criterion = torch.nn.BCELoss()
        best, weights, losses = float("inf"), first, []
        for _ in range(section.epochs):
            for inputs, labels in loaders[0]:
                optimizer.zero_grad()
                criterion(torch.sigmoid(head(inputs)).squeeze(1), labels.float()).backward()
                optimizer.step()
            total = 0.0
            with torch.no_grad():
                for inputs, labels in loaders[1]:
                    total += criterion(torch.sigmoid(head(inputs)).squeeze(1), labels.float()).item()
            losses.append(total / len(loaders[1]))
            if losses[-1] < best:
                best, weights = losses[-1], head.weight.detach().numpy()[0].copy()
    return weights, losses, list(fit.indices), list(held_out.indices)


def activations(model: Any, tokenizer: Any, text: str, neurons: Sequence[Neuron], new_tokens: int) -> Any:
    """Return the activations at the last position of each prefix, and the tokens: BOS for GPT-2, and no end.

    Returns:
        ``(new_tokens, num_neurons)`` and the generated token ids.
    """
    ids, rows = begun(model, tokenizer, text), []
    for _ in range(new_tokens):
        values, logits = captured(model, neurons, input_ids=torch.tensor([ids]))
        rows.append(values[0, -1].numpy())
        ids = [*ids, int(logits[0, -1].argmax())]
    return np.array(rows), ids[-new_tokens:]


def begun(model: Any, tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text as TransformerLens reads it."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return [tokenizer.bos_token_id, *ids] if model.config.model_type == "gpt2" else ids


def pushed_text(model: Any, tokenizer: Any, ids: list[int], neuron: Neuron, offset: float, new_tokens: int) -> str:
    """Return the greedy continuation of ``ids`` while an offset is added to a neuron at every position."""
    layer, index = neuron

    def push(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        added = torch.zeros(inputs[0].shape[-1])
        added[index] = offset
        return (inputs[0] + added,)

    begin = len(ids)
    handle = down_projections(model)[layer].register_forward_pre_hook(push)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
            if ids[-1] == model.generation_config.eos_token_id:
                break
    handle.remove()
    text: str = tokenizer.decode(ids[begin:], skip_special_tokens=True)
    return text


def dist_n(texts: Sequence[str], tokenizer: Any, k: int, is_released: bool) -> list[float]:
    """Return Dist-1 to Dist-3 over groups of ``k`` texts in a row, each the mean over groups."""
    ratios = []
    for start in range(0, len(texts), k):
        seen: list[set[Any]] = [set(), set(), set()]
        total = 0
        for text in texts[start : start + k]:
            ids = tokenizer(text)["input_ids"] if text else []
            surfaces = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]
            units = [one if is_released else token for token, one in zip(ids, surfaces, strict=True) if one]
            total += len(units)
            for order in (1, 2, 3):
                seen[order - 1].update(tuple(units[at : at + order]) for at in range(len(units) - order + 1))
        if total:
            ratios.append([len(grams) / total for grams in seen])
    return [float(np.mean(column)) for column in zip(*ratios, strict=True)]


def toxicity(keys: Sequence[str], scores: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Return EMT, ToxProb and AvgTox, with prompts of the same key as one prompt."""
    groups: dict[str, list[float]] = {}
    for key, row in zip(keys, scores.tolist(), strict=True):
        groups.setdefault(key, []).extend(row)
    maxima = [max(group) for group in groups.values()]
    return {
        "emt": sum(maxima) / len(maxima),
        "tox_prob": sum(maximum >= threshold for maximum in maxima) / len(maxima),
        "avg_tox": sum(map(sum, groups.values())) / sum(map(len, groups.values())),
    }


def seq2seq_perplexity(model: Any, tokenizer: Any, prompt: str, completion: str) -> float | None:
    """Return the script's perplexity: a text is input and label at once, and the prompt's loss is subtracted."""
    losses, lengths = [], []
    for text in (prompt + completion, prompt):
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        lengths.append(ids.shape[1])
    perplexity = float(np.exp((losses[0] - losses[1]) / (lengths[0] - lengths[1])))
    return perplexity if completion.strip() and perplexity < 1e4 else None
