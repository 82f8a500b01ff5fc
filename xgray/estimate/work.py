"""What an experiment takes and what of it is done, in counts: what an estimate is made of, beside the rates."""

from __future__ import annotations

from dataclasses import dataclass, field

from xgray.config import Train


@dataclass(frozen=True)
class Training:
    """One variant's training, or what is left of it."""

    section: Train
    num_pairs: int
    """Trained on, after the filters."""
    num_validation: int
    num_reference: int
    """Pairs whose reference log-probabilities are not in the cache."""
    num_steps: int
    """In all, unless it stops early."""
    num_steps_done: int = 0
    """Kept by a checkpoint or finished."""


@dataclass(frozen=True)
class Sampling:
    """One model's prompts in the stages generate and score."""

    num_generated: int = 0
    num_scored: int = 0
    num_known: int = 0
    """Texts among the completions on disk that wait for a score and have one in the score store."""


@dataclass(frozen=True)
class Reading:
    """Texts that the base model reads once, for its states: ``probe`` and ``retrieve``."""

    stage: str
    num_texts: int
    num_characters: int
    done: bool = False


@dataclass(frozen=True)
class Continuing:
    """Prompts that a model goes on from greedily, for its activations: ``vectors`` and ``activations/{model}``."""

    stage: str
    num_prompts: int
    new_tokens: int
    """Of each prompt, at most."""
    num_done: int = 0


@dataclass(frozen=True)
class Intervening:
    num_prompts: int
    settings: dict[str, Sampling]
    """The base model's own completions are one of them."""
    done: bool = False


@dataclass(frozen=True)
class Other:
    """What no rate is known of: ``transfer`` and ``capability/{model}``."""

    stage: str
    unit: str
    number: int
    done: bool = False


@dataclass(frozen=True)
class Work:
    """What an experiment takes and what of it is done, in counts."""

    num_prompts: int
    trainings: dict[str, Training]
    """By variant."""
    models: dict[str, Sampling]
    num_perplexities: int = 0
    """Completions whose fluency is measured already."""
    evaluated: bool = False
    reported: bool = False
    prompt_characters: float = 0.0
    """Of a prompt, on average: by it tokens are reckoned from characters."""
    mechanism: list[Reading | Continuing | Intervening | Other] = field(default_factory=list)
    """The stages that look inside the network, in their order."""
    notes: list[str] = field(default_factory=list)
    """What could not be counted exactly."""
