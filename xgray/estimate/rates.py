"""Rates and prices, with which ``xgray plan`` turns counts into hours and money, and their YAML file.

The user states them, or ``xgray plan --measure --write-rates FILE`` measures them. No price is built in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from ruamel.yaml.error import YAMLError

from xgray.config import Section, validate
from xgray.config.file import read_yaml
from xgray.errors import InputError
from xgray.storage.folder import Folder
from xgray.storage.parse import read_small_file


class StageRates(Section):
    """What the rates of every stage have in common."""

    source: str = "stated"
    """Where the rates come from; for measured ones how much was measured, on which device and when."""


class TrainRates(StageRates):
    """Rates of trainings."""

    seconds_per_step: float = Field(gt=0)
    """Seconds of one optimizer step."""
    start_seconds: float = Field(0.0, ge=0)
    """Before the first step of each training: starting workers, loading weights, tokenizing, warming up."""
    seconds_per_pair: float = Field(0.0, ge=0)
    """Of one pair through the model without gradients, for the reference and in each validation."""
    checkpoint_seconds: float = Field(0.0, ge=0)
    """Of each checkpoint, as far as steps wait for it; there is at most one after every validation."""
    export_seconds: float = Field(0.0, ge=0)
    """At the end of each training, for writing the result as other stages load it."""


class GenerateRates(StageRates):
    """Rates of engines."""

    tokens_per_second: float = Field(gt=0)
    """New tokens of one engine per second, with full batches and including the prompts' prefill."""
    start_seconds: float = Field(0.0, ge=0)
    """Of starting one engine."""
    restart_seconds: float | None = Field(None, ge=0)
    """Of loading each further model, by default ``start_seconds``; 0 where the engine applies adapters unmerged."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a prompt."""
    new_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a completion; by default ``generate.max_new_tokens``, the upper bound."""


class ScoreRates(StageRates):
    """Rates of scoring actors."""

    texts_per_second: float = Field(gt=0)
    """Of one scorer; there are as many as the cores or GPUs that engines leave can use. Perspective goes by its rate
    limit, ``score.execution.requests_per_second``, instead."""
    start_seconds: float = Field(0.0, ge=0)
    """Of starting actors and loading scorers."""


class FluencyRates(StageRates):
    """Rates of measuring perplexity."""

    tokens_per_second: float = Field(gt=0)
    """Tokens of completions per second through one copy of the measuring model, as the sampling model counts them."""
    start_seconds: float = Field(0.0, ge=0)
    """Of starting workers and loading the model."""


class MetricsRates(StageRates):
    """Rates of computing metrics."""

    prompts_per_second: float = Field(gt=0)
    """Prompts of one model per second, for diversity and intervals."""
    start_seconds: float = Field(0.0, ge=0)


class ReportRates(StageRates):
    """Rates of writing the report."""

    seconds: float = Field(gt=0)


class ScorerTrainingRates(StageRates):
    """Rates of ``xgray scorer train``."""

    tokens_per_second: float = Field(gt=0)
    """Tokens of the texts, without padding, through the optimizer steps of one worker."""


class Rates(StageRates):
    """The rates and prices of one machine or cluster."""

    start_seconds: float = Field(0.0, ge=0)
    """Of starting Ray and of the checks before the first stage."""
    train: TrainRates | None = None
    generate: GenerateRates | None = None
    score: ScoreRates | None = None
    fluency: FluencyRates | None = None
    metrics: MetricsRates | None = None
    report: ReportRates | None = None
    scorer_training: ScorerTrainingRates | None = None
    num_gpus: int = Field(0, ge=0)
    """GPUs of the cluster."""
    num_cores: int = Field(0, ge=0)
    """Cores of the cluster, as Ray counts them; 0 where they are not known: then as many as the engines reserve."""
    num_nodes: int = Field(1, ge=1)
    """Nodes that are paid for by the hour, all of them for the whole run."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """For the GPUs that a stage holds, while it holds them."""
    price_per_node_hour: float | None = Field(None, ge=0)
    price_per_1000_requests: float | None = Field(None, ge=0)
    """For requests to a scoring service."""
    currency: str = ""

    @property
    def has_prices(self) -> bool:
        """Whether any price is known."""
        prices = (self.price_per_gpu_hour, self.price_per_node_hour, self.price_per_1000_requests)
        return any(price is not None for price in prices)

    def with_stated(self, stated: Rates) -> Rates:
        """Return these rates, overridden by the fields set in ``stated``."""
        return self.model_copy(update={name: getattr(stated, name) for name in stated.model_fields_set})


def read_rates(path: Path) -> Rates:
    """Read a file of rates.

    Raises:
        InputError: the file is missing or no YAML, or a rate is unknown or out of range.
    """
    try:
        values: Any = read_yaml(read_small_file(path).decode())
    except OSError as error:
        raise InputError(f"--rates: {path}: cannot read it: {error.strerror}") from None
    except (UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"--rates: {path}: no valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"--rates: {path}: a rates file is a mapping, such as generate: {{tokens_per_second: 3000}}")
    rates: Rates = validate(Rates, values, str(path))
    return rates


def write_rates(path: str, rates: Rates) -> None:
    """Write the file that :func:`read_rates` reads, without unknown rates and defaults."""
    folder, name = Folder.containing(path)
    values = rates.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    folder.write_bytes(name, text.encode())
