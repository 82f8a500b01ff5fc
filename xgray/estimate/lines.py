"""What is left of the stages from training to the report, and what each takes: counts times rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from xgray.config import Experiment, Train
from xgray.distributed.nodes import Share, engines_use_gpu, share_gpus
from xgray.errors import InputError
from xgray.estimate.rates import GenerateRates, Rates, StageRates
from xgray.estimate.work import Training, Work
from xgray.score.build import SERVICES

Own = TypeVar("Own", bound=StageRates)

CORES = 2**30
"""Of each node: enough, as rates do not say how many there are."""


@dataclass(frozen=True)
class Line:
    """A stage in the estimate: what is left of it, and what that takes."""

    stage: str
    unit: str
    """What ``num_done`` and ``num_left`` count."""
    num_done: int
    num_left: int
    seconds: float | None
    """None where no rate is known: not estimated."""
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


def training_steps(section: Train, num_pairs: int) -> int:
    """Optimizer steps of a training on ``num_pairs`` pairs, as the trainer counts them."""
    if section.max_steps is not None:
        return section.max_steps
    batches = num_pairs // section.batch_size
    return math.ceil(section.epochs * max(1, math.ceil(batches / section.gradient_accumulation)))


def overlap(experiment: Experiment, rates: Rates) -> bool:
    """Whether a scorer works without taking the engine's cores."""
    return rates.num_gpus > 0 or experiment.score.scorer in SERVICES


def _needed(rates: Own | None, key: str, reason: str) -> Own:
    if rates is None:
        raise InputError(f"--rates: {key} is missing, and {reason}; state it, or let --measure find it")
    return rates


def training_line(name: str, one: Training, rates: Rates) -> Line:
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


def _on_gpus(experiment: Experiment, rates: Rates) -> bool:
    return engines_use_gpu(experiment.generate, rates.num_gpus > 0)


def _share(experiment: Experiment, work: Work, rates: Rates) -> Share:
    """Who holds the GPUs, as placement has it for what is left; they are taken as spread evenly over the nodes."""
    each, more = divmod(rates.num_gpus, rates.num_nodes)
    nodes = Counter({(CORES, each): rates.num_nodes - more, (CORES, each + 1): more})
    generating = any(one.num_generated < work.num_prompts for one in work.models.values())
    scoring = any(one.num_scored < work.num_prompts for one in work.models.values())
    engines = experiment.generate if generating and _on_gpus(experiment, rates) else None
    return share_gpus(nodes, engines, experiment.score if scoring else None)


def num_engines(experiment: Experiment, work: Work, rates: Rates) -> int:
    engines = _share(experiment, work, rates).engines
    return experiment.generate.execution.num_actors or max(1, engines)


def engine_gpus(experiment: Experiment, work: Work, rates: Rates) -> int:
    """Those that all engines hold."""
    size = experiment.generate.execution.tensor_parallel
    return num_engines(experiment, work, rates) * size if _on_gpus(experiment, rates) else 0


def generate_line(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
    done = work.models[model].num_generated
    left = work.num_prompts - done
    if not left:
        return Line(f"generate/{model}", "prompts", done, 0, 0.0)
    own = _needed(rates.generate, "generate.tokens_per_second", f"{model} has {left:,} prompts to complete")
    completions = left * experiment.generate.k
    tokens = round(completions * _new_tokens(experiment, own))
    seconds = tokens / own.tokens_per_second / num_engines(experiment, work, rates)
    return Line(
        f"generate/{model}", "prompts", done, left, seconds, num_completions=completions,
        prompt_tokens=None if own.prompt_tokens is None else round(left * own.prompt_tokens),
        new_tokens=tokens, gpu_hours=engine_gpus(experiment, work, rates) * seconds / 3600, source=own.source,
    )  # fmt: skip


def score_line(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
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
        num_actors = _share(experiment, work, rates).scorers or section.execution.num_actors
        seconds, source = texts / own.texts_per_second / num_actors, own.source
    return Line(
        f"score/{model}", "prompts", one.num_scored, left, seconds, num_completions=texts, num_requests=requests,
        gpu_hours=_share(experiment, work, rates).scorers * seconds / 3600, source=source,
    )  # fmt: skip


def start_lines(
    experiment: Experiment, work: Work, generating: list[Line], scoring: list[Line], rates: Rates
) -> Iterator[Line]:
    """Of engines, one for each model unless it takes adapters as they are, and of the scoring actors."""
    num_generating, num_scoring = (sum(one.num_left > 0 for one in own) for own in (generating, scoring))
    if num_generating and rates.generate:
        own = rates.generate
        again = own.start_seconds if own.restart_seconds is None else own.restart_seconds
        seconds = own.start_seconds + (num_generating - 1) * again
        hours = engine_gpus(experiment, work, rates) * seconds / 3600
        yield Line("generate: start", "models", 0, num_generating, seconds, gpu_hours=hours, source=own.source)
    if num_scoring and rates.score and rates.score.start_seconds:
        seconds = rates.score.start_seconds
        hours = _share(experiment, work, rates).scorers * seconds / 3600
        yield Line("score: start", "models", 0, num_scoring, seconds, gpu_hours=hours, source=rates.score.source)


def fluency_line(experiment: Experiment, work: Work, rates: Rates) -> Line:
    stage, total = "evaluate: fluency", work.num_prompts * len(work.models) * experiment.generate.k
    if experiment.evaluate.fluency.kind == "none":
        return Line(stage, "completions", 0, 0, 0.0)
    left = 0 if work.evaluated else total - work.num_perplexities
    if not left:
        return Line(stage, "completions", total, 0, 0.0)
    own = _needed(rates.fluency, "fluency.tokens_per_second", f"{left:,} completions are to be measured")
    tokens = round(left * _new_tokens(experiment, rates.generate))
    workers = experiment.evaluate.execution.num_workers or rates.num_gpus or rates.num_nodes
    seconds = own.start_seconds + tokens / own.tokens_per_second / workers
    return Line(
        stage, "completions", total - left, left, seconds, num_completions=left, new_tokens=tokens,
        gpu_hours=min(workers, rates.num_gpus) * seconds / 3600, source=own.source,
    )  # fmt: skip


def metrics_line(work: Work, rates: Rates) -> Line:
    total = work.num_prompts * len(work.models)
    if work.evaluated:
        return Line("evaluate: metrics", "prompts", total, 0, 0.0)
    own = _needed(rates.metrics, "metrics.prompts_per_second", f"metrics of {len(work.models)} models are to be drawn")
    seconds = own.start_seconds + total / own.prompts_per_second
    return Line("evaluate: metrics", "prompts", 0, total, seconds, source=own.source)


def report_line(work: Work, rates: Rates) -> Line:
    if work.reported:
        return Line("report", "reports", 1, 0, 0.0)
    own = _needed(rates.report, "report.seconds", "the report is to be written")
    return Line("report", "reports", 0, 1, own.seconds, source=own.source)
