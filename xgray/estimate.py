"""What is left of an experiment, times the rates: rows, tokens, calls, seconds, GPU-hours and money. Arithmetic alone.

    start ─▶ train ─▶ ... ─▶ generate and score ─▶ fluency ─▶ metrics ─▶ report

Trainings follow each other. Generating and scoring overlap where they do not want the same cores, that is where there
are GPUs or the scorer is a service: the longer one counts. Elsewhere a local scorer takes its time from the engine,
and both count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from xgray.config import Experiment, Train
from xgray.errors import InputError
from xgray.rates import GenerateRates, Rates, StageRates
from xgray.score.build import GPU_SCORERS, SERVICES

Own = TypeVar("Own", bound=StageRates)


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
    notes: list[str] = field(default_factory=list)
    """What could not be counted exactly."""


@dataclass(frozen=True)
class Line:
    """A stage in the estimate: what is left of it, and what that takes."""

    stage: str
    unit: str
    """What ``num_done`` and ``num_left`` count."""
    num_done: int
    num_left: int
    seconds: float
    num_completions: int = 0
    prompt_tokens: int | None = None
    """None where the mean length of a prompt is not known."""
    new_tokens: int = 0
    num_requests: int = 0
    """To a scoring service."""
    gpu_hours: float = 0.0
    money: float | None = None
    source: str = ""
    """Where its rates come from; empty where nothing is left."""


@dataclass(frozen=True)
class Estimate:
    lines: list[Line]
    seconds: float
    """From the command to the report."""
    saved_seconds: float
    """By which generating and scoring overlap: the lines' sum less this is the whole."""
    gpu_hours: float
    money: float | None
    currency: str
    notes: list[str]


def training_steps(section: Train, num_pairs: int) -> int:
    """Optimizer steps of a training on ``num_pairs`` pairs, as the trainer counts them."""
    if section.max_steps is not None:
        return section.max_steps
    batches = num_pairs // section.batch_size
    return math.ceil(section.epochs * max(1, math.ceil(batches / section.gradient_accumulation)))


def estimate(experiment: Experiment, work: Work, rates: Rates) -> Estimate:
    """
    Raises:
        InputError: a stage that is left has no rates; names the key.
    """
    notes = [*work.notes]
    trainings = [_training(name, one, rates) for name, one in work.trainings.items()]
    generating = [_generate(experiment, model, work, rates) for model in work.models]
    scoring = [_score(experiment, model, work, rates) for model in work.models]
    starts = _starts(experiment, generating, scoring, rates)
    evaluating = [_fluency(experiment, work, rates), _metrics(work, rates), _report(work, rates)]
    lines = [*trainings, *starts, *generating, *scoring, *evaluating]
    if any(one.num_left for one in lines):
        lines.insert(0, Line("start", "runs", 0, 1, rates.start_seconds, source=rates.source))
    sampling, asking = (sum(one.seconds for one in own) for own in (generating, scoring))
    saved = min(sampling, asking) if overlap(experiment, rates) else 0.0
    if sampling and asking:
        notes.append(
            "generate and score overlap, and the longer one counts"
            if overlap(experiment, rates)
            else "generate and score share this machine's cores, so both count in full"
        )
    if any(one.new_tokens for one in generating) and rates.generate and rates.generate.new_tokens is None:
        notes.append("tokens are an upper bound: generate.max_new_tokens for each completion")
    if any(one.num_left for one in trainings):
        notes.append("a training may stop early (train.patience); all of its steps are counted")
    seconds = sum(one.seconds for one in lines) - saved
    priced = [_priced(one, rates) for one in lines]
    money = None
    if rates.priced:
        node_hours = seconds / 3600 * rates.num_nodes
        money = sum(one.money or 0.0 for one in priced) + node_hours * (rates.price_per_node_hour or 0.0)
    gpu_hours = sum(one.gpu_hours for one in lines)
    return Estimate(priced, seconds, saved, gpu_hours, money, rates.currency, notes)


def overlap(experiment: Experiment, rates: Rates) -> bool:
    """Whether a scorer works without taking the engine's cores."""
    return rates.num_gpus > 0 or experiment.score.scorer in SERVICES


def _needed(rates: Own | None, key: str, reason: str) -> Own:
    if rates is None:
        raise InputError(f"--rates: {key} is missing, and {reason}; state it, or let --measure find it")
    return rates


def _training(name: str, one: Training, rates: Rates) -> Line:
    section, left = one.section, one.num_steps - one.num_steps_done
    if not left:
        return Line(f"train/{name}", "steps", one.num_steps_done, 0, 0.0)
    own = _needed(rates.train, "train.seconds_per_step", f"variant {name} has {left:,} steps to train")
    # The trainer validates and saves after its last step as well.
    rounds = math.ceil(one.num_steps / section.eval_steps) - one.num_steps_done // section.eval_steps
    seconds = (
        own.start_seconds
        + (one.num_reference + rounds * one.num_validation) * own.seconds_per_pair
        + left * own.seconds_per_step
        + rounds * own.checkpoint_seconds
        + own.export_seconds
    )
    use_gpu = rates.num_gpus > 0 if section.execution.use_gpu is None else section.execution.use_gpu
    gpus = section.execution.num_workers if use_gpu else 0
    return Line(
        f"train/{name}", "steps", one.num_steps_done, left, seconds, gpu_hours=gpus * seconds / 3600, source=own.source
    )


def _new_tokens(experiment: Experiment, rates: GenerateRates | None) -> float:
    """Of one completion."""
    return (rates.new_tokens if rates else None) or experiment.generate.max_new_tokens


def num_engines(experiment: Experiment, rates: Rates) -> int:
    execution = experiment.generate.execution
    return execution.num_actors or max(1, rates.num_gpus // execution.tensor_parallel)


def engine_gpus(experiment: Experiment, rates: Rates) -> int:
    """Those that all engines hold."""
    return num_engines(experiment, rates) * experiment.generate.execution.tensor_parallel if rates.num_gpus else 0


def _scorer_gpus(experiment: Experiment, rates: Rates) -> int:
    section = experiment.score
    return section.execution.num_actors if rates.num_gpus and section.scorer in GPU_SCORERS else 0


def _generate(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
    done = work.models[model].num_generated
    left = work.num_prompts - done
    if not left:
        return Line(f"generate/{model}", "prompts", done, 0, 0.0)
    own = _needed(rates.generate, "generate.tokens_per_second", f"{model} has {left:,} prompts to complete")
    completions = left * experiment.generate.k
    tokens = round(completions * _new_tokens(experiment, own))
    seconds = tokens / own.tokens_per_second / num_engines(experiment, rates)
    return Line(
        f"generate/{model}", "prompts", done, left, seconds, num_completions=completions,
        prompt_tokens=None if own.prompt_tokens is None else round(left * own.prompt_tokens),
        new_tokens=tokens, gpu_hours=engine_gpus(experiment, rates) * seconds / 3600, source=own.source,
    )  # fmt: skip


def _score(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
    section, one = experiment.score, work.models[model]
    left = work.num_prompts - one.num_scored
    if not left:
        return Line(f"score/{model}", "prompts", one.num_scored, 0, 0.0)
    texts = left * experiment.generate.k - one.num_known
    requests = 0 if section.archived or section.scorer not in SERVICES else texts
    if section.archived:
        seconds, source = 0.0, "from the score store alone"
    elif section.scorer == "perspective":
        quota = section.execution.requests_per_second
        seconds, source = texts / quota, f"the quota: {quota:g} requests a second"
    else:
        own = _needed(rates.score, "score.texts_per_second", f"{model} has {texts:,} texts to score")
        seconds, source = texts / own.texts_per_second / section.execution.num_actors, own.source
    return Line(
        f"score/{model}", "prompts", one.num_scored, left, seconds, num_completions=texts, num_requests=requests,
        gpu_hours=_scorer_gpus(experiment, rates) * seconds / 3600, source=source,
    )  # fmt: skip


def _starts(experiment: Experiment, generating: list[Line], scoring: list[Line], rates: Rates) -> Iterator[Line]:
    """Of engines, one for each model unless it takes adapters as they are, and of the scoring actors."""
    num_generating, num_scoring = (sum(one.num_left > 0 for one in own) for own in (generating, scoring))
    if num_generating and rates.generate:
        own = rates.generate
        again = own.start_seconds if own.restart_seconds is None else own.restart_seconds
        seconds = own.start_seconds + (num_generating - 1) * again
        hours = engine_gpus(experiment, rates) * seconds / 3600
        yield Line("generate: start", "models", 0, num_generating, seconds, gpu_hours=hours, source=own.source)
    if num_scoring and rates.score and rates.score.start_seconds:
        seconds = rates.score.start_seconds
        hours = _scorer_gpus(experiment, rates) * seconds / 3600
        yield Line("score: start", "models", 0, num_scoring, seconds, gpu_hours=hours, source=rates.score.source)


def _fluency(experiment: Experiment, work: Work, rates: Rates) -> Line:
    stage, total = "evaluate: fluency", work.num_prompts * len(work.models) * experiment.generate.k
    if experiment.evaluate.fluency.kind == "none":
        return Line(stage, "completions", 0, 0, 0.0)
    left = 0 if work.evaluated else total - work.num_perplexities
    if not left:
        return Line(stage, "completions", total, 0, 0.0)
    own = _needed(rates.fluency, "fluency.tokens_per_second", f"{left:,} completions are to be measured")
    tokens = round(left * _new_tokens(experiment, rates.generate))
    seconds = own.start_seconds + tokens / own.tokens_per_second / (rates.num_gpus or rates.num_nodes)
    return Line(
        stage, "completions", total - left, left, seconds, num_completions=left, new_tokens=tokens,
        gpu_hours=rates.num_gpus * seconds / 3600, source=own.source,
    )  # fmt: skip


def _metrics(work: Work, rates: Rates) -> Line:
    total = work.num_prompts * len(work.models)
    if work.evaluated:
        return Line("evaluate: metrics", "prompts", total, 0, 0.0)
    own = _needed(rates.metrics, "metrics.prompts_per_second", f"metrics of {len(work.models)} models are to be drawn")
    seconds = own.start_seconds + total / own.prompts_per_second
    return Line("evaluate: metrics", "prompts", 0, total, seconds, source=own.source)


def _report(work: Work, rates: Rates) -> Line:
    if work.reported:
        return Line("report", "reports", 1, 0, 0.0)
    own = _needed(rates.report, "report.seconds", "the report is to be written")
    return Line("report", "reports", 0, 1, own.seconds, source=own.source)


def _priced(one: Line, rates: Rates) -> Line:
    """The line with its money: GPUs that it holds, and requests. Nodes are paid for as a whole."""
    if not rates.priced:
        return one
    requests = one.num_requests / 1000 * (rates.price_per_1000_requests or 0.0)
    return replace(one, money=one.gpu_hours * (rates.price_per_gpu_hour or 0.0) + requests)
