"""The work of an experiment in counts: how much there is, and how much of it is done.

counts (this module) × rates ─▶ lines of the estimate
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xgray.config import Train


@dataclass(frozen=True)
class TrainingWork:
    """One variant's training."""

    section: Train
    num_pairs: int
    """Pairs to train on, after the filters."""
    num_validation: int
    """Pairs of each validation."""
    num_reference: int
    """Pairs whose reference log-probabilities are not in the cache."""
    num_steps: int
    """Optimizer steps in all, unless the training stops early."""
    num_steps_done: int = 0
    """Steps that a checkpoint has kept, or all of a finished training."""
    characters_per_sequence: float = 0.0
    """Mean characters of a prompt with a completion, from which tokens are estimated."""


@dataclass(frozen=True)
class ModelWork:
    """What is done of one model's prompts in the stages generate and score."""

    num_generated: int = 0
    num_scored: int = 0
    num_known: int = 0
    """Completions on disk that wait for a score which the score store has already."""


@dataclass(frozen=True)
class ReadingWork:
    """Texts that the base model reads once, for its hidden states: ``probe`` and ``retrieve``."""

    stage: str
    num_texts: int
    num_characters: int
    is_done: bool = False


@dataclass(frozen=True)
class GreedyWork:
    """Prompts that a model continues greedily, for its activations: ``vectors`` and ``activations/{model}``."""

    stage: str
    num_prompts: int
    new_tokens: int
    """New tokens of each prompt, at most."""
    num_done: int = 0


@dataclass(frozen=True)
class InterventionWork:
    """An intervention: its settings are sampled, scored and evaluated as models are."""

    num_prompts: int
    settings: dict[str, ModelWork]
    """By setting, the unedited base model among them."""
    is_done: bool = False


@dataclass(frozen=True)
class UnratedWork:
    """A stage that no rate is known of, such as ``transfer`` and ``capability/{model}``."""

    stage: str
    unit: str
    number: int
    is_done: bool = False


InsideWork = ReadingWork | GreedyWork | InterventionWork | UnratedWork


@dataclass(frozen=True)
class Work:
    """The work of an experiment."""

    num_prompts: int
    """Prompts of all languages."""
    trainings: dict[str, TrainingWork]
    """By variant."""
    models: dict[str, ModelWork]
    """By model."""
    other_scorers: dict[str, dict[str, ModelWork]] = field(default_factory=dict)
    """By scorer and model, for the scorers that are not the first."""
    num_perplexities: int = 0
    """Completions whose perplexity is measured already."""
    is_evaluated: bool = False
    is_reported: bool = False
    prompt_characters: float = 0.0
    """Mean characters of a prompt, from which tokens of other texts are estimated."""
    inside: list[InsideWork] = field(default_factory=list)
    """The stages between ``evaluate`` and ``report``, in their order."""
    notes: list[str] = field(default_factory=list)
    """What could not be counted exactly."""
