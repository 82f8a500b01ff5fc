"""Sequence classifiers from Hugging Face: scores are the probabilities of the model's labels that name attributes.

The model runs in transformers, or in vLLM if that serves the architecture (:mod:`xgray.score.vllm_classifier`). Tokens
and activation are the same in both. Where ``score.classifier.activation`` names none, it is that of transformers'
text-classification pipeline: a sigmoid for multi-label models and for models of a single label, else a softmax.

The texts beside it in a batch change a text's score by rounding only: with tiny models of three architectures on a CPU,
by at most 2e-6 in float32, 1e-3 in float16 and 6e-3 in bfloat16.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

import numpy as np

from xgray.config import Model, Score
from xgray.errors import InputError
from xgray.models.batches import by_tokens
from xgray.models.load import device_name, load_config, load_sequence_classifier, load_tokenizer, sequence_limit
from xgray.models.revisions import pin_revision
from xgray.models.source import model_fingerprint, resolve
from xgray.rows import ATTRIBUTES, EMPTY_TEXT
from xgray.score.scorer import Scored, declared_languages, known_attributes
from xgray.storage.fingerprint import fingerprint

FLOAT32_TOLERANCE = 1e-5
"""The batch changes a probability in float32 by less than this."""


class Engine(Protocol):
    """Runs the model."""

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the ``(n, num_labels)`` logits of ``n >= 1`` sequences of token ids, in order."""
        ...


class ClassifierScorer:
    """A classifier's probabilities as scores. Concurrent calls take turns."""

    def __init__(self, section: Score) -> None:
        """Read the model's configuration. Its weights are loaded with the first texts.

        Raises:
            InputError: there is no such model, it is not a classifier, or the labels do not match the model or the
                attributes.
        """
        self.name: str = section.scorer
        self.attributes = known_attributes(section.attributes)
        options = section.classifier
        self.validated = declared_languages(options.languages, "score.classifier.languages")
        if options.model is None:
            raise InputError(f"score.classifier.model: the scorer {self.name} needs one: {{id: FOLDER_OR_HUB_ID}}")
        try:
            model = pin_revision(options.model)
        except InputError as error:
            raise InputError(f"score.classifier.{error}") from None
        path = resolve(model)
        config = _configuration(path, model.revision)
        self._columns = label_columns(options.labels, self.attributes, config.id2label)
        is_sigmoid = config.problem_type == "multi_label_classification" or len(config.id2label) == 1
        self._is_sigmoid = is_sigmoid if options.activation is None else options.activation == "sigmoid"
        self._tokenizer = load_tokenizer(path, model.revision)
        self._num_special = self._tokenizer.num_special_tokens_to_add()
        self._max_length = sequence_limit(config, self._tokenizer.model_max_length)
        self._load_engine = partial(self._load, section, path, model)
        self._engine: Engine | None = None
        self.device = device_name()
        depends_on = {"model": model_fingerprint(model), "labels": options.labels, "dtype": model.dtype}
        if options.activation is not None:
            depends_on["activation"] = options.activation
        self.version = fingerprint(depends_on)[:12]
        self._facts = {
            "model": model.id,
            "revision": model.revision,
            "fingerprint": depends_on["model"],
            "dtype": model.dtype,
            "labels": {name: options.labels[name] for name in self.attributes},
            "activation": "sigmoid" if self._is_sigmoid else "softmax",
            "max_length": self._max_length,
            "validated": list(self.validated),
            "note": "Texts of more than max_length tokens lose their end; num_cut says how many did.",
        }
        self._num_texts = self._num_cut = 0
        self._lock = threading.Lock()

    def _load(self, section: Score, path: str, model: Model) -> Engine:
        if section.scorer == "vllm":
            from xgray.score.vllm_classifier import VllmEngine

            return VllmEngine(path, model, self._max_length, section.execution.gpu_memory_utilization)
        pad = self._tokenizer.pad_token_id
        return TransformersEngine(path, model.dtype, model.revision, pad, section.execution.batch_tokens)

    async def score(self, texts: Sequence[str], language: str) -> list[Scored]:
        """See :class:`~xgray.score.scorer.Scorer`. The model receives the text without its language."""
        return await asyncio.to_thread(self._score, list(texts))

    def _score(self, texts: list[str]) -> list[Scored]:
        with self._lock:
            sequences = self._sequences(texts)
            present = [index for index, sequence in enumerate(sequences) if len(sequence) > self._num_special]
            results = [Scored(None, EMPTY_TEXT)] * len(texts)
            if not present:
                return results
            if self._engine is None:
                self._engine = self._load_engine()
            rows = self._probabilities(self._engine, [sequences[index] for index in present])
            for index, row in zip(present, rows, strict=True):
                results[index] = self._scored(row)
            return results

    def _sequences(self, texts: list[str]) -> list[list[int]]:
        """Return each text's token ids, at most ``max_length`` of them."""
        sequences: list[list[int]] = self._tokenizer(texts, verbose=False)["input_ids"]
        too_long = [index for index, sequence in enumerate(sequences) if len(sequence) > self._max_length]
        for index in too_long:
            truncated = self._tokenizer(texts[index], truncation=True, max_length=self._max_length)
            sequences[index] = truncated["input_ids"]
        self._num_texts += len(texts)
        self._num_cut += len(too_long)
        return sequences

    def _probabilities(self, engine: Engine, sequences: list[list[int]]) -> np.ndarray:
        """Return ``(n, num_labels)`` probabilities, float64."""
        from scipy.special import expit, softmax

        logits = engine.logits(sequences).astype(np.float64)
        return np.asarray(expit(logits) if self._is_sigmoid else softmax(logits, axis=1))

    def _scored(self, probabilities: np.ndarray) -> Scored:
        if not np.isfinite(probabilities).all():
            return Scored(None, "the model's output is not finite; a wider dtype may help")
        return Scored({name: float(probabilities[column]) for name, column in self._columns.items()})

    def provenance(self) -> dict[str, Any]:
        """See :class:`~xgray.score.scorer.Scorer`."""
        counts = {"num_texts": self._num_texts, "num_cut": self._num_cut}
        return {"scorer": self.name, "version": self.version, **self._facts, **counts}

    async def close(self) -> None:
        """See :class:`~xgray.score.scorer.Scorer`."""
        self._engine = None


class TransformersEngine:
    """The model in transformers, on a GPU if there is one. Sequences of similar length share a batch."""

    def __init__(self, path: str, dtype: str, revision: str | None, pad_token_id: int, batch_tokens: int) -> None:
        """Load the model at ``path``.

        Args:
            batch_tokens: tokens in a batch, padding included.
        """
        self._model = load_sequence_classifier(path, dtype, revision)
        if self._model.config.pad_token_id is None:  # a decoder needs it to find a text's last token
            self._model.config.pad_token_id = pad_token_id
        self._batch_tokens = batch_tokens

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """See :class:`Engine`."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from xgray.models.inference import inference

        logits = np.empty((len(sequences), self._model.config.num_labels), np.float32)
        for batch in by_tokens([len(sequence) for sequence in sequences], self._batch_tokens):
            rows = [torch.tensor(sequences[index]) for index in batch]
            tokens = pad_sequence(rows, batch_first=True, padding_value=self._model.config.pad_token_id)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            with inference():
                output = self._model(
                    input_ids=tokens.to(self._model.device), attention_mask=mask.to(self._model.device)
                )
            logits[batch] = output.logits.float().cpu().numpy()
        return logits


def label_columns(labels: dict[str, str], attributes: Sequence[str], id2label: dict[int, str]) -> dict[str, int]:
    """Return the column of the model's output for each attribute.

    Args:
        labels: the model's label for each attribute, the field ``score.classifier.labels``.
        attributes: the attributes to score.
        id2label: the model's label of each column.

    Raises:
        InputError: ``labels`` names an unknown attribute or label, or lacks an attribute.
    """
    field = "score.classifier.labels"
    if unknown := [name for name in labels if name not in ATTRIBUTES]:
        raise InputError(f"{field}: {unknown[0]!r} is no attribute; known: {', '.join(ATTRIBUTES)}")
    columns = {label: column for column, label in id2label.items()}
    for name, label in labels.items():
        if label not in columns:
            nearest = get_close_matches(label, columns, n=1, cutoff=0) or [""]
            raise InputError(
                f"{field}.{name}: the model has no label {label!r}; did you mean {nearest[0]!r}? "
                f"It has: {', '.join(columns)}"
            )
    if missing := [name for name in attributes if name not in labels]:
        raise InputError(f"{field}: no label for {', '.join(missing)}; the model has: {', '.join(columns)}")
    return {name: columns[labels[name]] for name in attributes}


def _configuration(path: str, revision: str | None) -> Any:
    try:
        config = load_config(path, revision)
    except (OSError, ValueError, InputError) as error:
        raise InputError(f"score.classifier.model: cannot read {path!r}: {str(error).splitlines()[0]}") from None
    architectures = config.architectures or ["unknown"]
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"score.classifier.model: {path!r} is no sequence classifier: its architecture is {architectures[0]}"
        )
    if config.problem_type == "regression":
        raise InputError(f"score.classifier.model: {path!r} is a regression model; its output is not a probability")
    return config
