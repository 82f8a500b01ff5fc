"""Generative safety models as scorers: the probability of the answers that the model may give.

    text ─▶ prompt (guard_prompt) ─▶ one forward pass ─▶ logits of the answers' tokens ─▶ softmax ─▶ mean weight

Nothing is sampled. The score is the expected weight of the answer: with ``{safe: 0, unsafe: 1}`` the probability of
"unsafe" against "safe". What all prompts begin with, often hundreds of tokens of policy, is computed once. The model
runs in transformers, or in vLLM (:mod:`xgray.score.vllm_guard`).
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from xgray.config import Guard, Model, Score
from xgray.errors import InputError
from xgray.models.batches import by_tokens
from xgray.models.load import context_length, device_name, load_config, load_guard, load_tokenizer
from xgray.models.revisions import pin_revision
from xgray.models.source import model_fingerprint, resolve
from xgray.rows import ATTRIBUTES, EMPTY_TEXT
from xgray.score.guard_prompt import PLACEHOLDER, GuardPrompt
from xgray.score.scorer import Scored, declared_languages, known_attributes
from xgray.storage.fingerprint import fingerprint

if TYPE_CHECKING:
    import torch

CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""How the names of architectures end that generate text."""

Labels = dict[str, dict[str, float]]
"""The weight of each answer, for each attribute."""


class Engine(Protocol):
    """Runs the model."""

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the logits of the answers' tokens after each of ``n >= 1`` sequences of token ids, in order.

        Shape ``(n, num_answers)``; a row may be shifted by a constant, as log-probabilities are.
        """
        ...


class GuardScorer:
    """A generative safety model's answers as scores. Concurrent calls take turns."""

    name = "guard"

    def __init__(self, section: Score) -> None:
        """Read the model's configuration and tokenizer. Its weights are loaded with the first texts.

        Raises:
            InputError: there is no such model, it does not generate, or the prompt or the labels do not suit it or the
                attributes.
        """
        options = section.guard or Guard()
        self.attributes = known_attributes(section.attributes)
        self.validated = declared_languages(options.languages, "score.guard.languages")
        labels = check_labels(options.labels, self.attributes)
        if options.model is None:
            raise InputError("score.guard.model: the scorer guard needs one: {id: FOLDER_OR_HUB_ID}")
        try:
            model = pin_revision(options.model)
        except InputError as error:
            raise InputError(f"score.guard.{error}") from None
        path = resolve(model)
        config = _configuration(path, model.revision)
        answers = list(dict.fromkeys(answer for weights in labels.values() for answer in weights))
        self._prompt = GuardPrompt(options, answers, load_tokenizer(path, model.revision), context_length(config))
        self._columns = {
            name: ([answers.index(answer) for answer in weights], np.array(list(weights.values())))
            for name, weights in labels.items()
        }
        self._load_engine = partial(self._load, section, options, path, model)
        self._engine: Engine | None = None
        self.device = device_name()
        depends_on = {
            "fingerprint": model_fingerprint(model),
            "dtype": model.dtype,
            "engine": options.engine,
            "prompt": self._prompt.head + PLACEHOLDER + self._prompt.tail,
            "labels": options.labels,
            "max_length": self._prompt.max_length,
        }
        self.version = fingerprint(depends_on)[:12]
        self._facts: dict[str, Any] = {
            "model": model.id,
            "revision": model.revision,
            **depends_on,
            "labels": labels,
            "tokens": dict(zip(answers, self._prompt.tokens, strict=True)),
            "num_shared_tokens": len(self._prompt.prefix),
            "validated": list(self.validated),
            "note": "Texts whose prompt has more than max_length tokens lose their end; num_cut says how many did.",
        }
        self._num_texts = self._num_cut = 0
        self._lock = threading.Lock()

    def _load(self, section: Score, options: Guard, path: str, model: Model) -> Engine:
        if options.engine == "vllm":
            from xgray.score.vllm_guard import VllmEngine

            return VllmEngine(path, model, self._prompt, section.execution.gpu_memory_utilization)
        return TransformersEngine(path, model, self._prompt, section.execution.batch_tokens)

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`. The model receives the text without its language."""
        return await asyncio.to_thread(self._score, list(texts))

    def _score(self, texts: list[str]) -> list[Scored]:
        with self._lock:
            prompts = [self._prompt.token_ids(text) for text in texts]
            self._num_texts += len(texts)
            self._num_cut += sum(is_cut for _, is_cut in prompts)
            sequences = {index: ids for index, (ids, _) in enumerate(prompts) if ids is not None}
            results = [Scored(None, EMPTY_TEXT)] * len(texts)
            if not sequences:
                return results
            if self._engine is None:
                self._engine = self._load_engine()
            rows = self._engine.logits(list(sequences.values())).astype(np.float64)
            for index, row in zip(sequences, rows, strict=True):
                results[index] = self._scored(row)
            return results

    def _scored(self, logits: np.ndarray) -> Scored:
        if not np.isfinite(logits).all():
            return Scored(None, "the model's output is not finite; a wider dtype may help")
        return Scored(
            {name: expected_weight(logits[columns], weights) for name, (columns, weights) in self._columns.items()}
        )

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        counts = {"num_texts": self._num_texts, "num_cut": self._num_cut}
        return {"scorer": self.name, "version": self.version, **self._facts, **counts}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        self._engine = None


def expected_weight(logits: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean of an answer's weight under the softmax of the answers' logits.

    Args:
        logits: of the answers of one attribute, ``(num_answers,)``; a common constant does not matter.
        weights: of the same answers, ``(num_answers,)``, from 0 to 1.
    """
    from scipy.special import softmax

    return float(np.clip(softmax(logits) @ weights, 0.0, 1.0))


def check_labels(labels: Labels, attributes: Sequence[str]) -> Labels:
    """Return the labels of the attributes to score, the field ``score.guard.labels``.

    Raises:
        InputError: an attribute is unknown or has no labels, or its answers cannot tell texts apart.
    """
    field = "score.guard.labels"
    if unknown := [name for name in labels if name not in ATTRIBUTES]:
        raise InputError(f"{field}: {unknown[0]!r} is no attribute; known: {', '.join(ATTRIBUTES)}")
    if missing := [name for name in attributes if name not in labels]:
        raise InputError(
            f"{field}: no answers for {', '.join(missing)}; write {{{missing[0]}: {{safe: 0, unsafe: 1}}}}"
        )
    for name, weights in labels.items():
        if outside := [answer for answer, weight in weights.items() if not 0 <= weight <= 1]:
            raise InputError(
                f"{field}.{name}.{outside[0]}: a weight lies between 0 and 1 (got {weights[outside[0]]:g})"
            )
        if len(set(weights.values())) < 2:
            raise InputError(
                f"{field}.{name}: at least two answers with different weights are needed, or every text has the same "
                f"score (found: {', '.join(weights) or 'none'})"
            )
    return {name: labels[name] for name in attributes}


class TransformersEngine:
    """The model in transformers, on a GPU if there is one. Sequences of similar length share a batch."""

    def __init__(self, path: str, model: Model, prompt: GuardPrompt, batch_tokens: int) -> None:
        """Load the model at ``path``, and compute what all prompts share.

        Args:
            batch_tokens: tokens in a batch, padding included and the shared ones not.
        """
        self._model = load_guard(path, model.dtype, model.revision)
        self._head = _answer_head(self._model.get_output_embeddings(), prompt.tokens)
        self._model.set_output_embeddings(self._head)
        self._num_answers = len(prompt.tokens)
        self._batch_tokens = batch_tokens
        self._prefix = prompt.prefix
        self._cache = self._prefix_cache() if self._prefix else None

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`Engine`."""
        num_shared = len(self._prefix)
        is_shared = [len(ids) > num_shared and list(ids[:num_shared]) == self._prefix for ids in sequences]
        logits = np.empty((len(sequences), self._num_answers), np.float32)
        for shares in (True, False):
            indices = [index for index, value in enumerate(is_shared) if value == shares]
            rest = [sequences[index][num_shared if shares else 0 :] for index in indices]
            for batch in by_tokens([len(ids) for ids in rest], self._batch_tokens):
                rows = [indices[position] for position in batch]
                logits[rows] = self._batch_logits([rest[position] for position in batch], shares)
        return logits

    def _batch_logits(self, sequences: list[Sequence[int]], shares: bool) -> np.ndarray:
        """Return the logits of one batch. Padding stands at the end, where no token of a text attends to it."""
        import torch

        from xgray.models.batches import padded
        from xgray.models.inference import inference

        device = self._model.device
        tokens, _ = padded(sequences, device)
        self._head.last = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
        cache = self._cache if shares else None
        with inference():
            output = self._model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None)
        return output.logits[:, 0].float().cpu().numpy()

    def _prefix_cache(self) -> Any:
        """Return the keys and values of the shared tokens, ``(1, heads, num_shared, head_dim)`` in each layer.

        A batch reads them without changing them, so that they are never copied as a whole.
        """
        import torch

        from xgray.models.inference import inference

        tokens = torch.tensor([self._prefix], device=self._model.device)
        self._head.last = torch.tensor([len(self._prefix) - 1], device=self._model.device)
        with inference():
            cache = self._model(input_ids=tokens, use_cache=True).past_key_values
        for layer in cache.layers:
            layer.update = partial(_extended, layer)
        return cache


def _extended(layer: Any, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **options: Any) -> Any:
    """Return a cache layer's keys and values followed by those of a batch, and leave the layer as it is.

    Args:
        layer: a layer of the shared prefix's cache.
        keys: of the batch's tokens, ``(batch, heads, seq, head_dim)``.
        values: as ``keys``.
    """
    fresh = copy.copy(layer)
    fresh.keys = layer.keys.expand(len(keys), -1, -1, -1)
    fresh.values = layer.values.expand(len(values), -1, -1, -1)
    return type(layer).update(fresh, keys, values, *rest, **options)


def _answer_head(head: Any, tokens: Sequence[int]) -> Any:
    """Return an output layer of the answers' tokens alone, in float32.

    Over the whole vocabulary, and at every position, the last layer would take more time than a small model's others.
    """
    import torch
    import torch.nn.functional as F

    class AnswerHead(torch.nn.Module):  # type: ignore[misc]
        last: torch.Tensor
        """The position of each sequence's last token, ``(batch,)``."""

        def __init__(self) -> None:
            super().__init__()
            rows = torch.tensor(tokens, device=head.weight.device)
            self.weight = torch.nn.Parameter(head.weight[rows].float(), requires_grad=False)
            bias = getattr(head, "bias", None)
            self.bias = None if bias is None else torch.nn.Parameter(bias[rows].float(), requires_grad=False)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            """Return ``(batch, 1, num_answers)`` logits at ``last`` of ``(batch, seq, d_model)`` states."""
            rows = states[torch.arange(len(states), device=states.device), self.last]
            return F.linear(rows.float(), self.weight, self.bias)[:, None]

    return AnswerHead()


def _configuration(path: str, revision: str | None) -> Any:
    try:
        config = load_config(path, revision)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"score.guard.model: cannot read {path!r}: {str(error).splitlines()[0]}") from None
    architectures = config.architectures or ["unknown"]
    if not any(name.endswith(CAUSAL) for name in architectures):
        raise InputError(
            f"score.guard.model: {path!r} does not generate text: its architecture is {architectures[0]}. A sequence "
            "classifier is for score.scorer: classifier"
        )
    return config
