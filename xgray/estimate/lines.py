"""The lines of an estimate, from training to the report: the work that is left, times the rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from xgray.config import LOADS_MODEL, Experiment, Train
from xgray.config.stages import scoring_stage
from xgray.distributed.nodes import (
    ClusterCapacity,
    ScorerPlacement,
    Share,
    block_size,
    engine_placement,
    engines_use_gpu,
    most_cores,
    scorer_placement,
    share_gpus,
    spare_cores,
)
from xgray.estimate.rates import GenerateRates, Rates
from xgray.estimate.work import TrainingWork, Work
from xgray.score.build import SERVICES


@dataclass(frozen=True)
class Line:
    """One stage in the estimate: the work that is left, and what it takes."""

    stage: str
    unit: str
    """What ``num_done`` and ``num_left`` count, such as ``prompts``."""
    num_done: int
    num_left: int
    seconds: float | None
    """None where no rate is known, so that the stage is not estimated."""
    num_completions: int = 0
    prompt_tokens: int | None = None
    """None where the mean length of a prompt is not known."""
    new_tokens: int = 0
    num_requests: int = 0
    """Requests to a scoring service."""
    gpu_hours: float = 0.0
    money: float | None = None
    source: str = ""
    """Where the rates come from; empty where nothing is left."""
    missing: str = ""
    """The key of the rate that is not known, in the file of rates; empty where none is missing."""


def num_training_steps(section: Train, num_pairs: int) -> int:
    """Return the optimizer steps of a training on ``num_pairs`` pairs, as the trainer counts them."""
    if section.max_steps is not None:
        return section.max_steps
    batches = num_pairs // section.batch_size
    return math.ceil(section.epochs * max(1, math.ceil(batches / section.gradient_accumulation)))


def overlap(experiment: Experiment, work: Work, rates: Rates) -> bool:
    """Return whether the scorer works without taking the engine's cores or GPUs."""
    if experiment.score.scorer in LOADS_MODEL and rates.num_gpus > 0:
        return not _on_gpus(experiment, rates) or _share(experiment, work, rates).scorers > 0
    if rates.num_gpus > 0 or experiment.score.scorer in SERVICES:
        return True
    capacity = _capacity(experiment, rates)
    engine = engine_placement(capacity, experiment.generate, experiment.score)
    return most_cores(spare_cores(capacity.alive, engine)) > 0


def training_line(name: str, training: TrainingWork, rates: Rates) -> Line:
    """Estimate one variant's training."""
    section, left = training.section, training.num_steps - training.num_steps_done
    if not left:
        return Line(f"train/{name}", "steps", training.num_steps_done, 0, 0.0)
    measured = rates.train
    if measured is None:
        key = "train.seconds_per_step"
        return Line(f"train/{name}", "steps", training.num_steps_done, left, None, missing=key)
    # The trainer validates and saves after its last step as well.
    rounds = math.ceil(training.num_steps / section.eval_steps) - training.num_steps_done // section.eval_steps
    seconds = (
        measured.start_seconds
        + (training.num_reference + rounds * training.num_validation) * measured.seconds_per_pair
        + left * measured.seconds_per_step
        + rounds * measured.checkpoint_seconds
        + measured.export_seconds
    )
    gpus = section.execution.num_workers if _trains_on_gpus(section, rates) else 0
    return Line(
        f"train/{name}",
        "steps",
        training.num_steps_done,
        left,
        seconds,
        gpu_hours=gpus * seconds / 3600,
        source=measured.source,
    )


def _trains_on_gpus(section: Train, rates: Rates) -> bool:
    return rates.num_gpus > 0 if section.execution.use_gpu is None else section.execution.use_gpu


def side_by_side_seconds(lines: list[Line], work: Work, rates: Rates) -> float:
    """Return the seconds of all trainings together: each begins, in their order, when its GPUs or nodes are free.

    Args:
        lines: those of ``work.trainings``.
    """
    free_at = {True: [0.0] * max(1, rates.num_gpus), False: [0.0] * rates.num_nodes}
    for line, training in zip(lines, work.trainings.values(), strict=True):
        is_on_gpus = _trains_on_gpus(training.section, rates)
        places = sorted(free_at[is_on_gpus])
        taken = min(training.section.execution.num_workers, len(places))
        free_at[is_on_gpus] = [places[taken - 1] + (line.seconds or 0.0)] * taken + places[taken:]
    return max(*free_at[True], *free_at[False], 0.0)


def _new_tokens(experiment: Experiment, rates: GenerateRates | None) -> float:
    """Return the tokens of one completion."""
    return (rates.new_tokens if rates else None) or experiment.generate.max_new_tokens


def _on_gpus(experiment: Experiment, rates: Rates) -> bool:
    return engines_use_gpu(experiment.generate, rates.num_gpus > 0)


def _capacity(experiment: Experiment, rates: Rates) -> ClusterCapacity:
    """Return the cluster, among whose nodes cores and GPUs are assumed to be even."""
    each, more = divmod(rates.num_gpus, rates.num_nodes)
    least = max(1, (each + (more > 0)) * (experiment.generate.execution.cpus_per_actor or 1))
    cores = rates.num_cores // rates.num_nodes or least
    nodes = Counter({(cores, each): rates.num_nodes - more, (cores, each + 1): more})
    return ClusterCapacity(+nodes, Counter(), Counter())


def _is_generating(work: Work) -> bool:
    return any(model.num_generated < work.num_prompts for model in work.models.values())


def _share(experiment: Experiment, work: Work, rates: Rates) -> Share:
    """Return which stages hold the GPUs, as placement gives them out."""
    scoring = any(model.num_scored < work.num_prompts for model in work.models.values())
    engines = experiment.generate if _is_generating(work) and _on_gpus(experiment, rates) else None
    return share_gpus(_capacity(experiment, rates).alive, engines, experiment.score if scoring else None)


def scorers(experiment: Experiment, work: Work, rates: Rates) -> ScorerPlacement:
    """Return on what scorers run, as placement starts them."""
    generate = experiment.generate if _is_generating(work) else None
    size = block_size(experiment.generate, fills_steps=_on_gpus(experiment, rates))
    blocks = sum(math.ceil((work.num_prompts - model.num_scored) / size) for model in work.models.values())
    return scorer_placement(_capacity(experiment, rates), experiment.score, generate, blocks)


def _scorer_gpus(experiment: Experiment, work: Work, rates: Rates) -> int:
    """Return the GPUs that scorers hold: one at least, in turn with an engine where it is the only one."""
    placed = scorers(experiment, work, rates)
    return placed.number * placed.gpus


def num_engines(experiment: Experiment, work: Work, rates: Rates) -> int:
    """Return the number of engines that sample at once."""
    engines = _share(experiment, work, rates).engines
    return experiment.generate.execution.num_actors or max(1, engines)


def engine_gpus(experiment: Experiment, work: Work, rates: Rates) -> int:
    """Return the GPUs that all engines hold together."""
    size = experiment.generate.execution.tensor_parallel
    return num_engines(experiment, work, rates) * size if _on_gpus(experiment, rates) else 0


def generate_line(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
    """Estimate the sampling of one model's completions."""
    done = work.models[model].num_generated
    left = work.num_prompts - done
    if not left:
        return Line(f"generate/{model}", "prompts", done, 0, 0.0)
    measured = rates.generate
    completions = left * experiment.generate.k
    tokens = round(completions * _new_tokens(experiment, measured))
    if measured is None:
        return Line(
            f"generate/{model}", "prompts", done, left, None, num_completions=completions, new_tokens=tokens,
            missing="generate.tokens_per_second",
        )  # fmt: skip
    seconds = tokens / measured.tokens_per_second / num_engines(experiment, work, rates)
    return Line(
        f"generate/{model}", "prompts", done, left, seconds, num_completions=completions,
        prompt_tokens=None if measured.prompt_tokens is None else round(left * measured.prompt_tokens),
        new_tokens=tokens, gpu_hours=engine_gpus(experiment, work, rates) * seconds / 3600, source=measured.source,
    )  # fmt: skip


def score_line(experiment: Experiment, model: str, work: Work, rates: Rates) -> Line:
    """Estimate the scoring of one model's completions."""
    section, done = experiment.score, work.models[model]
    left = work.num_prompts - done.num_scored
    if not left:
        return Line(f"score/{model}", "prompts", done.num_scored, 0, 0.0)
    texts = left * experiment.generate.k - done.num_known
    requests = 0 if section.archived or section.scorer not in SERVICES else texts
    seconds: float | None = None
    source = missing = ""
    if section.archived:
        seconds, source = 0.0, "from the score store alone"
    elif section.scorer == "perspective":
        per_second = section.execution.requests_per_second
        seconds, source = texts / per_second, f"the rate limit: {per_second:g} requests a second"
    elif rates.score is None:
        missing = "score.texts_per_second"
    else:
        per_second = rates.score.texts_per_second * scorers(experiment, work, rates).number
        seconds, source = texts / per_second, rates.score.source
    return Line(
        f"score/{model}", "prompts", done.num_scored, left, seconds, num_completions=texts, num_requests=requests,
        gpu_hours=_scorer_gpus(experiment, work, rates) * (seconds or 0.0) / 3600, source=source, missing=missing,
    )  # fmt: skip


def other_score_lines(experiment: Experiment, work: Work) -> Iterator[Line]:
    """Yield the scoring of each model's completions by the scorers that are not the first.

    They score one after the other, when the first is done. A rate is known of Perspective alone.
    """
    for scorer, models in work.other_scorers.items():
        section = experiment.score_section(scorer)
        for model, done in models.items():
            stage, left = f"{scoring_stage(scorer)}/{model}", work.num_prompts - done.num_scored
            texts = left * experiment.generate.k - done.num_known
            seconds: float | None = None
            source = ""
            if not left or section.archived:
                seconds, source = 0.0, "from the score store alone" if left else ""
            elif section.scorer == "perspective":
                per_second = section.execution.requests_per_second
                seconds, source = texts / per_second, f"the rate limit: {per_second:g} requests a second"
            requests = texts if section.scorer in SERVICES and not section.archived else 0
            yield Line(
                stage, "prompts", done.num_scored, left, seconds,
                num_completions=texts, num_requests=requests, source=source,
            )  # fmt: skip


def start_lines(
    experiment: Experiment, work: Work, generating: list[Line], scoring: list[Line], rates: Rates
) -> Iterator[Line]:
    """Estimate the starts of engines, once for each model unless they apply adapters unmerged, and of scorers."""
    num_generating, num_scoring = (sum(line.num_left > 0 for line in lines) for lines in (generating, scoring))
    if num_generating and rates.generate:
        measured = rates.generate
        again = measured.start_seconds if measured.restart_seconds is None else measured.restart_seconds
        seconds = measured.start_seconds + (num_generating - 1) * again
        hours = engine_gpus(experiment, work, rates) * seconds / 3600
        yield Line("generate: start", "models", 0, num_generating, seconds, gpu_hours=hours, source=measured.source)
    if num_scoring and rates.score and rates.score.start_seconds:
        seconds = rates.score.start_seconds
        hours = _scorer_gpus(experiment, work, rates) * seconds / 3600
        yield Line("score: start", "models", 0, num_scoring, seconds, gpu_hours=hours, source=rates.score.source)


def fluency_line(experiment: Experiment, work: Work, rates: Rates) -> Line:
    """Estimate the measuring of perplexities."""
    stage, total = "evaluate: fluency", work.num_prompts * len(work.models) * experiment.generate.k
    if experiment.evaluate.fluency.kind == "none":
        return Line(stage, "completions", 0, 0, 0.0)
    left = 0 if work.is_evaluated else total - work.num_perplexities
    if not left:
        return Line(stage, "completions", total, 0, 0.0)
    measured = rates.fluency
    tokens = round(left * _new_tokens(experiment, rates.generate))
    if measured is None:
        key = "fluency.tokens_per_second"
        return Line(
            stage, "completions", total - left, left, None, num_completions=left, new_tokens=tokens, missing=key
        )
    workers = experiment.evaluate.execution.num_workers or rates.num_gpus or rates.num_nodes
    seconds = measured.start_seconds + tokens / measured.tokens_per_second / workers
    return Line(
        stage, "completions", total - left, left, seconds, num_completions=left, new_tokens=tokens,
        gpu_hours=min(workers, rates.num_gpus) * seconds / 3600, source=measured.source,
    )  # fmt: skip


def metrics_line(work: Work, rates: Rates) -> Line:
    """Estimate the computing of metrics."""
    total = work.num_prompts * len(work.models)
    if work.is_evaluated:
        return Line("evaluate: metrics", "prompts", total, 0, 0.0)
    measured = rates.metrics
    if measured is None:
        return Line("evaluate: metrics", "prompts", 0, total, None, missing="metrics.prompts_per_second")
    seconds = measured.start_seconds + total / measured.prompts_per_second
    return Line("evaluate: metrics", "prompts", 0, total, seconds, source=measured.source)


def report_line(work: Work, rates: Rates) -> Line:
    """Estimate the report."""
    if work.is_reported:
        return Line("report", "reports", 1, 0, 0.0)
    if rates.report is None:
        return Line("report", "reports", 0, 1, None, missing="report.seconds")
    return Line("report", "reports", 0, 1, rates.report.seconds, source=rates.report.source)
