"""Estimate what is left of an experiment: rows, tokens, requests, seconds, GPU-hours and money. Arithmetic only.

    start ─▶ train ─▶ ... ─▶ generate and score ─▶ fluency ─▶ metrics ─▶ report

Trainings run side by side: those on different GPUs or nodes at the same time. Those that share a GPU or the cores of
a node are counted as if they ran there one after the other, which takes about as long. Generating and scoring overlap
where they do not compete for the same cores: where there are GPUs, or the scorer is a service. Then the longer one
counts. Otherwise a local scorer takes its time from the engine, and both count in full.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xgray.config import Experiment
from xgray.estimate.lines import (
    Line,
    fluency_line,
    generate_line,
    metrics_line,
    other_score_lines,
    overlap,
    report_line,
    score_line,
    side_by_side_seconds,
    start_lines,
    training_line,
)
from xgray.estimate.lines_mechanism import inside_lines
from xgray.estimate.rates import Rates
from xgray.estimate.work import Work


@dataclass(frozen=True)
class Estimate:
    """What is left of an experiment, and what it takes."""

    lines: list[Line]
    seconds: float
    """From the command to the report."""
    saved_seconds: float
    """Seconds by which trainings, or generating and scoring, overlap: ``seconds`` is the lines' sum less these."""
    gpu_hours: float
    money: float | None
    """None without prices."""
    currency: str
    notes: list[str]


def estimate(experiment: Experiment, work: Work, rates: Rates) -> Estimate:
    """Multiply the work that is left by the rates. What no rate is known of is counted, and not estimated."""
    trainings = [training_line(name, training, rates) for name, training in work.trainings.items()]
    generating = [generate_line(experiment, model, work, rates) for model in work.models]
    scoring = [score_line(experiment, model, work, rates) for model in work.models]
    starts = start_lines(experiment, work, generating, scoring, rates)
    evaluating = [fluency_line(experiment, work, rates), metrics_line(work, rates)]
    inside, saved_inside = inside_lines(experiment, work, rates)
    others = list(other_score_lines(experiment, work))
    lines = [*trainings, *starts, *generating, *scoring, *others, *evaluating, *inside, report_line(work, rates)]
    if any(line.num_left for line in lines):
        lines.insert(
            0, Line("start", "runs", 0, 1, rates.start_seconds, source=rates.source if rates.start_seconds else "")
        )
    generate_seconds, score_seconds = (sum(line.seconds or 0.0 for line in group) for group in (generating, scoring))
    saved_training = sum(line.seconds or 0.0 for line in trainings) - side_by_side_seconds(trainings, work, rates)
    saved = saved_inside + saved_training
    saved += min(generate_seconds, score_seconds) if overlap(experiment, rates) else 0.0
    seconds = sum(line.seconds or 0.0 for line in lines) - saved
    priced = [_priced(line, rates) for line in lines]
    money = None
    if rates.has_prices:
        node_hours = seconds / 3600 * rates.num_nodes
        money = sum(line.money or 0.0 for line in priced) + node_hours * (rates.price_per_node_hour or 0.0)
    notes = [*work.notes]
    if generate_seconds and score_seconds:
        notes.append(
            "generate and score overlap, and the longer one counts"
            if overlap(experiment, rates)
            else "generate and score share this machine's cores, so both count in full"
        )
    if any(line.new_tokens for line in generating) and rates.generate and rates.generate.new_tokens is None:
        notes.append("tokens are an upper bound: generate.max_new_tokens for each completion")
    if sum(line.num_left > 0 for line in trainings) > 1:
        notes.append(
            "trainings run at the same time on different GPUs or nodes"
            if saved_training
            else "trainings share this machine, so all count in full"
        )
    if any(line.num_left for line in trainings):
        notes.append("a training may stop early (train.patience); all of its steps are counted")
    if unknown := [line.stage for line in lines if line.seconds is None]:
        notes.append(f"the total is without {', '.join(unknown)}: no rate is known, so they are not estimated")
    if missing := list(dict.fromkeys(line.missing for line in lines if line.missing)):
        notes.append(
            "for hours and money: estimates for a kind of GPU (--on 8xh100), measured here (--measure), or a file "
            f"(--rates) with {', '.join(missing)}"
        )
    gpu_hours = sum(line.gpu_hours for line in lines)
    return Estimate(priced, seconds, saved, gpu_hours, money, rates.currency, notes)


def _priced(line: Line, rates: Rates) -> Line:
    """Return the line with its money, for GPUs and requests. Nodes are paid for as a whole."""
    if not rates.has_prices:
        return line
    requests = line.num_requests / 1000 * (rates.price_per_1000_requests or 0.0)
    return replace(line, money=line.gpu_hours * (rates.price_per_gpu_hour or 0.0) + requests)
