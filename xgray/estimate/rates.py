"""How fast a machine works and what it costs: the rates that ``xgray plan`` reckons with, and their YAML file.

Somebody states them, or ``xgray plan --measure --write-rates FILE`` measures them. No price is built in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from xgray.config import Section, validate
from xgray.errors import InputError
from xgray.storage.folder import Folder


class StageRates(Section):
    source: str = "stated"
    """Where the rates come from: of measured ones how much was measured, on what device and when."""


class TrainRates(StageRates):
    seconds_per_step: float = Field(gt=0)
    """Of one optimizer step."""
    start_seconds: float = Field(0.0, ge=0)
    """Of each training: workers, weights, tokens, the warm-up of the first step."""
    seconds_per_pair: float = Field(0.0, ge=0)
    """Of a pair through the model without gradients: for the reference, and in each validation."""
    checkpoint_seconds: float = Field(0.0, ge=0)
    """Of each checkpoint, of which there is one after every validation."""
    export_seconds: float = Field(0.0, ge=0)
    """Of each training's end: the result as others load it."""


class GenerateRates(StageRates):
    tokens_per_second: float = Field(gt=0)
    """New tokens of one engine, with full batches; reading the prompts is in it."""
    start_seconds: float = Field(0.0, ge=0)
    """Of an engine."""
    restart_seconds: float | None = Field(None, ge=0)
    """Of each further model; 0 where the engine applies adapters as they are, by default as ``start_seconds``."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a prompt."""
    new_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a completion; by default as many as ``generate.max_new_tokens`` allows, the upper bound."""


class ScoreRates(StageRates):
    texts_per_second: float = Field(gt=0)
    """Of one scoring actor; for Perspective the quota (``score.execution.requests_per_second``) counts instead."""
    start_seconds: float = Field(0.0, ge=0)
    """Of actors and scorers."""


class FluencyRates(StageRates):
    tokens_per_second: float = Field(gt=0)
    """Tokens of completions (as the model that wrote them counts them) through one copy of the measuring model."""
    start_seconds: float = Field(0.0, ge=0)
    """Of the workers, with loading the model."""


class MetricsRates(StageRates):
    prompts_per_second: float = Field(gt=0)
    """Prompts of one model through diversity and the bootstrap."""
    start_seconds: float = Field(0.0, ge=0)


class ReportRates(StageRates):
    seconds: float = Field(gt=0)


class Rates(StageRates):
    start_seconds: float = Field(0.0, ge=0)
    """Of a run: Ray, and the checks before the first stage."""
    train: TrainRates | None = None
    generate: GenerateRates | None = None
    score: ScoreRates | None = None
    fluency: FluencyRates | None = None
    metrics: MetricsRates | None = None
    report: ReportRates | None = None
    num_gpus: int = Field(0, ge=0)
    """GPUs of the cluster."""
    num_nodes: int = Field(1, ge=1)
    """Nodes that are paid for by the hour, all of them as long as the run lasts."""
    price_per_gpu_hour: float | None = Field(None, ge=0)
    """For the GPUs that a stage holds, as long as it does."""
    price_per_node_hour: float | None = Field(None, ge=0)
    price_per_1000_requests: float | None = Field(None, ge=0)
    """Of a scoring service."""
    currency: str = ""

    @property
    def priced(self) -> bool:
        return any(one is not None for one in (self.price_per_gpu_hour, self.price_per_node_hour,
                                               self.price_per_1000_requests))  # fmt: skip

    def with_stated(self, stated: Rates) -> Rates:
        """These rates, with whatever the file ``stated`` in their place."""
        return self.model_copy(update={name: getattr(stated, name) for name in stated.model_fields_set})


def read_rates(path: Path) -> Rates:
    """
    Raises:
        InputError: the file is missing or no YAML, or a rate is unknown or out of range.
    """
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--rates: {path}: cannot read it: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--rates: {path}: no valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"--rates: {path}: a rates file is a mapping, such as generate: {{tokens_per_second: 3000}}")
    rates: Rates = validate(Rates, values, str(path))
    return rates


def write_rates(path: str, rates: Rates) -> None:
    """Write the file that :func:`read_rates` reads; what is not known, or is as by default, is left out."""
    folder, name = Folder.containing(path)
    values = rates.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    folder.write_bytes(name, text.encode())
