"""What the training of a scorer takes: texts, steps, tokens and arithmetic, memory and disk by formula, and time.

tokens     of the texts to train on, from a sample of them, times the epochs
FLOP       6 for each weight outside the embeddings and each token: 2 forward, 4 backward (Kaplan et al. 2020)
memory     of a worker: weights, gradients and two states of AdamW in float32, 16 bytes a weight; and activations,
           34 bytes for each layer, token and hidden unit in 16 bits (Korthikanti et al. 2022, without the matrices
           of the attention, which are never stored)
disk       three checkpoints and the one that is being written, each with the weights and two states
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xgray.config import Model, ScorerTraining
from xgray.models.gguf import quiet_deepspeed
from xgray.models.load import load_config, load_tokenizer
from xgray.models.revisions import pin_revision
from xgray.models.source import resolve
from xgray.train.checkpoints import NUM_KEPT
from xgray.train.encoder.fine_tune import FineTuning, TokenizedTexts, num_steps
from xgray.train.encoder.model import load_encoder
from xgray.train.encoder.prepare import check_texts, hold_out, read_sources
from xgray.train.encoder.split import Part
from xgray.train.metrics import read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_TEXTS = 2000
"""Texts that are tokenized to estimate how long texts are, and to measure with."""
MEASURED_STEPS = 6
BYTES_FLOAT32 = 4
STATES = 2
"""AdamW's states of a weight."""
ACTIVATION_BYTES = 34
CHECKPOINTED_BYTES = 2
"""Of a layer, token and hidden unit where activations are recomputed: only the layer's input is kept."""


@dataclass(frozen=True)
class Encoder:
    """The shape of the model."""

    num_weights: int
    num_embedding_weights: int
    num_layers: int
    hidden_size: int


@dataclass(frozen=True)
class ScorerTrainingEstimate:
    """What a training takes."""

    num_texts: dict[str, int]
    """Texts by what they are used for: train, validation, test, removed."""
    num_steps: int
    """Optimizer steps; a training may stop early, see ``patience``."""
    tokens_per_text: float
    num_tokens: int
    """Tokens of all steps."""
    flop: float
    """Arithmetic of all steps and validations."""
    memory_bytes: int
    """Of one worker, on its GPU if it has one."""
    disk_bytes: int
    """Of the output folder at its fullest."""
    tokens_per_second: float | None
    """Of all workers together, None where it is not known."""
    seconds: float | None
    """Of steps and validations; without starts, checkpoints and the agreement."""


def estimate_training(section: ScorerTraining, tokens_per_second: float | None) -> ScorerTrainingEstimate:
    """Count the work of a training, and divide it by the speed of one worker.

    Args:
        section: the training.
        tokens_per_second: of one worker; None where it is not known.

    Raises:
        InputError: a source or the model is missing or wrong, or too few texts are left to train on.
    """
    sources = read_sources(section)
    parts, _ = hold_out(section, sources)
    check_texts(section, np.concatenate([source.targets for source in sources]), parts)
    texts = [text for source in sources for text in source.texts]
    train = [texts[index] for index in np.flatnonzero(parts == Part.TRAIN)]
    lengths = sample_lengths(section, _tokenizer(section), train)
    encoder = read_encoder(section)
    num_texts = {part.name.lower(): int((parts == part).sum()) for part in Part}
    steps = num_steps(section, len(train))
    num_tokens = round(steps * section.batch_size * float(lengths.mean()))
    num_validations = -(-steps // section.eval_steps)
    validated = num_validations * num_texts["validation"] * float(lengths.mean())
    tokens = num_tokens + validated / 3  # without the backward pass, which is two thirds of a step's arithmetic
    per_second = tokens_per_second and tokens_per_second * section.execution.num_workers
    return ScorerTrainingEstimate(
        num_texts=num_texts,
        num_steps=steps,
        tokens_per_text=float(lengths.mean()),
        num_tokens=num_tokens,
        flop=6.0 * (encoder.num_weights - encoder.num_embedding_weights) * tokens,
        memory_bytes=memory_bytes(section, encoder, int(lengths.max())),
        disk_bytes=disk_bytes(encoder),
        tokens_per_second=per_second,
        seconds=tokens / per_second if per_second else None,
    )


def memory_bytes(section: ScorerTraining, encoder: Encoder, longest: int) -> int:
    """Return the memory of one worker by formula, in bytes.

    Args:
        section: the training.
        encoder: the model's shape.
        longest: tokens of the longest text.
    """
    states = (2 + STATES) * BYTES_FLOAT32 * encoder.num_weights
    texts = section.batch_size // section.execution.num_workers
    tokens = max(longest, min(section.execution.batch_tokens, texts * longest))
    each_layer = ACTIVATION_BYTES * encoder.hidden_size * tokens
    if section.execution.gradient_checkpointing:
        return states + each_layer + encoder.num_layers * CHECKPOINTED_BYTES * encoder.hidden_size * tokens
    return states + encoder.num_layers * each_layer


def disk_bytes(encoder: Encoder) -> int:
    """Return the space that checkpoints and the exported scorer take, in bytes."""
    checkpoint = (1 + STATES) * BYTES_FLOAT32 * encoder.num_weights
    return (NUM_KEPT + 2) * checkpoint + BYTES_FLOAT32 * encoder.num_weights


def sample_lengths(section: ScorerTraining, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> np.ndarray:
    """Return the tokens of a sample of the texts, evenly spaced among them, ``(at most SAMPLE_TEXTS,)``."""
    return np.array([len(ids) for ids in _sample_ids(section, tokenizer, texts)])


def _sample_ids(section: ScorerTraining, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    sample = [texts[index] for index in np.linspace(0, len(texts) - 1, min(SAMPLE_TEXTS, len(texts)), dtype=int)]
    ids: list[list[int]] = tokenizer(sample, truncation=True, max_length=section.max_length)["input_ids"]
    return ids


def _pinned(section: ScorerTraining) -> Model:
    return pin_revision(Model(id=section.model.id, revision=section.model.revision))


def _tokenizer(section: ScorerTraining) -> PreTrainedTokenizerBase:
    model = _pinned(section)
    return load_tokenizer(resolve(model), model.revision)


def read_encoder(section: ScorerTraining) -> Encoder:
    """Return the shape of a training's model, without its weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    quiet_deepspeed()
    model = _pinned(section)
    config = load_config(resolve(model), model.revision)
    with torch.device("meta"):
        skeleton = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    return Encoder(
        num_weights=sum(weight.numel() for weight in skeleton.parameters()),
        num_embedding_weights=skeleton.get_input_embeddings().weight.numel(),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
    )


def measure_tokens_per_second(section: ScorerTraining) -> float:
    """Return the tokens a second of one worker: a few steps of this training in this process, the first left out.

    Raises:
        InputError: a source or the model is missing or wrong.
    """
    model = _pinned(section)
    tokenizer = _tokenizer(section)
    texts = [text for source in read_sources(section) for text in source.texts]
    ids = _sample_ids(section, tokenizer, texts)
    wanted = MEASURED_STEPS * section.batch_size // section.execution.num_workers
    ids = (ids * (wanted // len(ids) + 1))[:wanted]
    sample = TokenizedTexts(
        tokens=np.concatenate([np.array(each, np.int32) for each in ids]),
        offsets=np.concatenate([[0], np.cumsum([len(each) for each in ids])]),
        targets=np.full((wanted, len(section.attributes)), 0.5, np.float32),
        weights=np.ones(wanted, np.float32),
    )
    execution = section.execution.model_copy(update={"num_workers": 1})
    batch_size = section.batch_size // section.execution.num_workers
    changes = {"execution": execution, "batch_size": batch_size, "epochs": 1.0, "max_steps": None, "patience": None}
    short = section.model_copy(update=changes | {"eval_steps": 2**31})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = load_encoder(resolve(model), model.revision, section.attributes, section.seed)
        FineTuning(encoder, short, sample, _first(sample, batch_size), folder, folder / "metrics.jsonl").run()
        steps = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row][1:]
    return sum(row["tokens"] for row in steps) / sum(row["seconds"] for row in steps)


def _first(texts: TokenizedTexts, number: int) -> TokenizedTexts:
    """Return the first texts."""
    end = texts.offsets[number]
    return TokenizedTexts(
        texts.tokens[:end], texts.offsets[: number + 1], texts.targets[:number], texts.weights[:number]
    )
