"""The measures under both protocols, each against an independent route: rows of the second table of ``parity``.

Every function returns the largest relative difference under ``released`` and under ``corrected``; 0 means that all
tokens, names, texts or numbers are the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import MT5Config, MT5ForConditionalGeneration

from benchmarks.reference import released
from benchmarks.reference.measurements import (
    difference,
    greedy_activations,
    mean_hidden_states,
    residual_without_norm,
)
from benchmarks.reference.tiny_models import make_tokenizer
from xgray.config import Fluency, Generate, Probe, Switch, Train
from xgray.data.pairs import read_pairs
from xgray.evaluate.diversity import diversity, released_groups
from xgray.evaluate.fluency import perplexities
from xgray.evaluate.toxicity import merge_duplicates, metric_parts, prompt_toxicity
from xgray.generate.engine import Weights
from xgray.generate.transformers_engine import TransformersEngine
from xgray.mechanism.activations import measure_activations, released_prefix
from xgray.mechanism.neurons import Edit, down_projections, value_vectors
from xgray.mechanism.probe import epochs, initial_weights, released_split, text_features, train_probe
from xgray.mechanism.retrieval.scores import pair_scores
from xgray.mechanism.retrieval.states import encode
from xgray.mechanism.vectors import potential_sources
from xgray.models.load import load_tokenizer
from xgray.train.pairs import TokenizedPair, prepare_pairs
from xgray.train.trainer import lora_config

TEXTS = ["a longer text of some words", "b", "another", "two words", "闭嘴", "Mon patron, toujours"]
COMPLETIONS = [["she sang", "she sang it", ""], ["no", "oh no no", " "], ["a b", "b a", "a b a b"]]
NEURONS = [(2, 5), (0, 47), (2, 0), (1, 30)]
NEW_TOKENS = 12
Pair = tuple[float, float]
"""The largest relative differences under ``released`` and under ``corrected``."""


def dpo_tokens() -> Pair:
    """Return the shares of pairs with other tokens or labels, over tokenizers with and without a beginning token."""
    pairs = read_pairs("embedded", 100)
    differing: dict[Switch, list[bool]] = {"released": [], "corrected": []}
    for bos in ("<end>", None):
        tokenizer = make_tokenizer()
        tokenizer.bos_token = bos
        for protocol, max_length in (("released", 256), ("released", 90), ("corrected", 256)):
            section = Train(
                tokenization=protocol,
                length_filter="corrected",
                max_length=max_length,
                validation_share=0,
                batch_size=1,
            )
            prepared = prepare_pairs(pairs, tokenizer, section, seed=0).train
            if protocol == "released":
                expected = [released.dpo_input(pair, tokenizer, max_length) for pair in pairs]
                differing["released"] += [
                    released.ids_and_labels(found) != right for found, right in zip(prepared, expected, strict=True)
                ]
            else:
                short = {_whole_texts(found, tokenizer) for found in prepared if len(found.prompt_ids) < 64}
                texts = {(f"{pair.prompt}{pair.chosen}<end>", f"{pair.prompt}{pair.rejected}<end>") for pair in pairs}
                differing["corrected"] += [text not in texts for text in short]
    return float(np.mean(differing["released"])), float(np.mean(differing["corrected"]))


def _whole_texts(pair: TokenizedPair, tokenizer: Any) -> tuple[str, str]:
    def text(ids: list[int]) -> str:
        return "".join(tokenizer.backend_tokenizer.id_to_token(token) for token in ids)

    spelled = [text(pair.prompt_ids + ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
    table = _bytes_of_letters()
    chosen, rejected = (
        bytes(table[letter] for letter in one.removesuffix("<end>")).decode() + "<end>" for one in spelled
    )
    return chosen, rejected


def _bytes_of_letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level tokenizer stands for (as in GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def lora_modules(kind: str, model: Any) -> Pair | None:
    """Return the numbers of modules that are adapted and should not be, or the other way round."""
    found = {}
    for setting in ("released", "corrected"):
        section = Train(method="lora", lora_targets=setting, dropout=setting)
        config = lora_config(model, section)
        adapted = get_peft_model(model, config)
        found[setting] = {
            name.removeprefix("base_model.model.")
            for name, module in adapted.named_modules()
            if hasattr(module, "lora_A")
        }
        dropouts = {
            module.p
            for name, module in adapted.named_modules()
            if isinstance(module, torch.nn.Dropout) and "lora" in name
        }
        assert dropouts == (set() if setting == "released" else {section.lora_dropout})
        adapted.unload()
    linear = {
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and module is not model.get_output_embeddings()
    }
    expected = released.lora_names(model, kind)
    if kind == "gpt2":  # the script names no modules of GPT-2
        return float("nan"), float(len(found["corrected"] ^ linear))
    return float(len(found["released"] ^ expected)), float(len(found["corrected"] ^ linear))


def probe_features(kind: str, model: Any) -> Pair:
    tokenizer = make_tokenizer()
    after, _ = text_features(model, tokenizer, TEXTS, 64, 4, "released")
    before, _ = text_features(model, tokenizer, TEXTS, 64, 4)
    states = np.stack([mean_hidden_states(model, tokenizer, text)[-1] for text in TEXTS])
    residual = np.stack([residual_without_norm(model, tokenizer, text) for text in TEXTS])
    return difference(after, states), difference(before, residual)


def probe_training() -> Pair:
    """Compare with the script's loaders and steps, and with Adam written out in numpy from w = 0."""
    rng = np.random.default_rng(0)
    features, toxic = rng.normal(size=(123, 8)).astype(np.float32), rng.random(123) < 0.4
    section = Probe(protocol="released", batch_size=5, epochs=4)
    fit, held_out = released_split(len(features), section.validation_share, 99)
    found = train_probe((features[fit], toxic[fit]), (features[held_out], toxic[held_out]), section, 99)
    weights, losses, *_ = released.probe_training(features, toxic, section, 99, initial_weights(8, 99))
    as_script = max(difference(found.w, weights), difference(np.array(found.validation_losses), np.array(losses)))
    section = Probe(batch_size=5, epochs=4, learning_rate=0.01)
    plain = train_probe((features, toxic), (features, toxic), section, 3)
    w, first, second, step = np.zeros(8), np.zeros(8), np.zeros(8), 0
    for batches in epochs(len(features), section, 3):
        for rows in batches:
            step += 1
            odds = features[rows] @ w
            gradient = (1 / (1 + np.exp(-odds)) - toxic[rows]) @ features[rows] / len(rows)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            w = w - 0.01 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return as_script, difference(plain.w, w)


def sources(kind: str, model: Any) -> Pair | None:
    """Compare the order of the value vectors; the script knows GPT-2 and BLOOM, and both protocols are one there."""
    if kind not in ("gpt2", "bloom"):
        return None
    w = np.random.default_rng(0).normal(size=32).astype(np.float32)
    found, _ = potential_sources(model, make_tokenizer(), w, 20, 1)
    matrix = torch.cat([value_vectors(projection).detach() for projection in down_projections(model)])
    cosines, best = F.cosine_similarity(matrix, torch.from_numpy(w)).topk(20)
    order = [divmod(position, len(matrix) // 3) for position in best.tolist()]
    assert [vector.neuron for vector in found] == order
    distance = difference(np.array([vector.cosine for vector in found]), cosines.numpy())
    return distance, distance


def activations(kind: str, model: Any) -> Pair:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<end>"
    arguments = (model, tokenizer, TEXTS, NEURONS, NEW_TOKENS, 4)
    rows, tokens = zip(
        *(released.activations(model, tokenizer, text, NEURONS, NEW_TOKENS) for text in TEXTS), strict=True
    )
    ends = model.config.eos_token_id
    model.config.eos_token_id = model.generation_config.eos_token_id = tokens[0][3]  # some continuations end early
    after_end, _ = measure_activations(*arguments, protocol="released")
    up_to_end, _ = measure_activations(*arguments)
    expected = [greedy_activations(model, tokenizer, text, NEURONS, NEW_TOKENS)[0].mean(axis=0) for text in TEXTS]
    model.config.eos_token_id = model.generation_config.eos_token_id = ends
    return difference(after_end, np.stack([row.mean(axis=0) for row in rows])), difference(
        up_to_end, np.stack(expected)
    )


def interventions(kind: str, model: Any) -> Pair:
    """Return the shares of other texts under an offset of 3."""
    saved = make_tokenizer()
    saved.bos_token = "<end>"
    section = Generate(k=1, temperature=0, max_new_tokens=NEW_TOKENS)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved.save_pretrained(folder)
        tokenizer = load_tokenizer(folder)  # transformers may load it as another class
        for is_released in (True, False):
            prefix = released_prefix(model.config.model_type, tokenizer) if is_released else ""
            engine = TransformersEngine(Weights(folder, None, "float32", edits_neurons=True, prefix=prefix), section)
            engine.edit(Edit((NEURONS[0],), offset=3.0))
            found = [samples[0].text for samples in engine.sample(TEXTS, range(len(TEXTS)), None)]
            ids = [
                released.begun(model, tokenizer, text) if is_released else tokenizer(text)["input_ids"]
                for text in TEXTS
            ]
            expected = [released.pushed_text(model, tokenizer, tokens, NEURONS[0], 3.0, NEW_TOKENS) for tokens in ids]
            shares.append(float(np.mean([one != other for one, other in zip(found, expected, strict=True)])))
    return shares[0], shares[1]


def retrieval(kind: str, model: Any) -> Pair:
    """Compare the script's mean cosine; corrected it is the same arithmetic on texts without HTML entities."""
    tokenizer = make_tokenizer()
    left, right = TEXTS[:3], TEXTS[3:]
    states, english = (encode(model, tokenizer, texts, 64, 4).states for texts in (left, right))
    found = pair_scores(states, english)["cosine"].mean()
    both = [np.stack([mean_hidden_states(model, tokenizer, text) for text in texts], axis=1) for texts in (left, right)]
    expected = F.cosine_similarity(torch.from_numpy(both[0]), torch.from_numpy(both[1]), dim=-1).mean().item()
    distance = abs(found - expected) / abs(expected)
    return distance, distance


def causal_perplexity(kind: str, model: Any) -> Pair | None:
    tokenizer = make_tokenizer()
    section = Fluency(kind="causal")
    found = perplexities(model, tokenizer, TEXTS[:3], COMPLETIONS, section, 4)
    expected = [_causal(model, tokenizer, TEXTS[row], text) for row, group in enumerate(COMPLETIONS) for text in group]
    values = [value for group in found for value in group]
    return float("nan"), _of_values(values, expected)


def _causal(model: Any, tokenizer: Any, prompt: str, completion: str) -> float | None:
    if not completion:
        return None
    ids, begin = tokenizer(prompt + completion, return_tensors="pt").input_ids, len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, begin - 1 : -1]
    return float(np.exp(F.cross_entropy(logits, ids[0, begin:]).item()))


def seq2seq_perplexity() -> Pair:
    """Compare a tiny mT5: the script's formula, and the cross-entropy of the completion given the prompt."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = MT5ForConditionalGeneration(MT5Config(**sizes, pad_token_id=0, decoder_start_token_id=0)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.25)
    tokenizer, rows = make_tokenizer(), [(TEXTS[row], text) for row, group in enumerate(COMPLETIONS) for text in group]
    differences = []
    for protocol in ("released", "corrected"):
        found = perplexities(model, tokenizer, TEXTS[:3], COMPLETIONS, Fluency(kind="seq2seq", protocol=protocol), 4)
        route = released.seq2seq_perplexity if protocol == "released" else _seq2seq
        expected = [route(model, tokenizer, prompt, text) if text else None for prompt, text in rows]
        differences.append(_of_values([value for group in found for value in group], expected))
    return differences[0], differences[1]


def _seq2seq(model: Any, tokenizer: Any, prompt: str, completion: str) -> float:
    inputs, labels = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, completion))
    with torch.no_grad():
        return float(np.exp(model(input_ids=inputs, labels=labels).loss.item()))


def _of_values(found: Sequence[float | None], expected: Sequence[float | None]) -> float:
    assert [value is None for value in found] == [value is None for value in expected]
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None and other is not None]
    return max(abs(one - other) / other for one, other in pairs)


def toxicity() -> Pair:
    scores = np.random.default_rng(0).random((6, 4))
    prompts, ids = ["a", "b", "a", "c", "d", "b"], list("012345")
    differences = []
    for keys, is_released in ((prompts, True), (ids, False)):
        merged = merge_duplicates(prompts, scores) if is_released else (ids, scores)
        parts = metric_parts(prompt_toxicity(*merged, threshold=0.5))
        expected = released.toxicity(keys, scores)
        differences.append(max(abs(top.sum() / bottom.sum() - expected[name]) for name, (top, bottom) in parts.items()))
    return differences[0], differences[1]


def dist_n() -> Pair:
    groups = [["the cat", "the the", ""], [], ["oh", "oh no", "the cat"], ["闭嘴", "a b a b", "闭"]]
    tokenizer, differences = make_tokenizer(), []
    for is_released in (True, False):
        compared = released_groups(groups, 3) if is_released else groups
        found = np.nanmean(diversity(compared, tokenizer, "released" if is_released else "corrected"), axis=0)
        texts = [text for group in groups for text in group]
        differences.append(difference(found, np.array(released.dist_n(texts, tokenizer, 3, is_released))))
    return differences[0], differences[1]


OF_MODELS: dict[str, Callable[[str, Any], Pair | None]] = {
    "LoRA's modules, dropout": lora_modules,
    "probe's features": probe_features,
    "value vectors' order": sources,
    "activations": activations,
    "interventions' texts": interventions,
    "retrieval's mean cosine": retrieval,
    "perplexity, causal": causal_perplexity,
}
"""Measures that a model of any architecture computes."""

OTHERS: dict[str, Callable[[], Pair]] = {
    "DPO's tokens and labels": dpo_tokens,
    "probe's training": probe_training,
    "perplexity, mT5": seq2seq_perplexity,
    "EMT, ToxProb, AvgTox": toxicity,
    "Dist-1, 2, 3": dist_n,
}
"""Measures that need no causal model."""
