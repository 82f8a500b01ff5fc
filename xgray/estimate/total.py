"""What is left of an experiment, times the rates: rows, tokens, calls, seconds, GPU-hours and money. Arithmetic alone.

    start ─▶ train ─▶ ... ─▶ generate and score ─▶ fluency ─▶ metrics ─▶ report

Trainings follow each other. Generating and scoring overlap where they do not want the same cores, that is where there
are GPUs or the scorer is a service: the longer one counts. Elsewhere a local scorer takes its time from the engine,
and both count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from xgray.config import Experiment
from xgray.estimate.lines import (
    Line,
    fluency_line,
    generate_line,
    metrics_line,
    overlap,
    report_line,
    score_line,
    start_lines,
    training_line,
)
from xgray.estimate.lines_mechanism import mechanism_lines
from xgray.estimate.rates import Rates
from xgray.estimate.work import Work


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


def estimate(experiment: Experiment, work: Work, rates: Rates) -> Estimate:
    """
    Raises:
        InputError: a stage that is left has no rates; names the key.
    """
    notes = [*work.notes]
    trainings = [training_line(name, one, rates) for name, one in work.trainings.items()]
    generating = [generate_line(experiment, model, work, rates) for model in work.models]
    scoring = [score_line(experiment, model, work, rates) for model in work.models]
    starts = start_lines(experiment, work, generating, scoring, rates)
    evaluating = [fluency_line(experiment, work, rates), metrics_line(work, rates)]
    inside, saved_inside = mechanism_lines(experiment, work, rates)
    lines = [*trainings, *starts, *generating, *scoring, *evaluating, *inside, report_line(work, rates)]
    if any(one.num_left for one in lines):
        lines.insert(0, Line("start", "runs", 0, 1, rates.start_seconds, source=rates.source))
    sampling, asking = (sum(one.seconds or 0.0 for one in own) for own in (generating, scoring))
    saved = saved_inside + (min(sampling, asking) if overlap(experiment, rates) else 0.0)
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
    if unknown := [one.stage for one in lines if one.seconds is None]:
        notes.append(f"the total is without {', '.join(unknown)}: no rate is known, so they are not estimated")
    seconds = sum(one.seconds or 0.0 for one in lines) - saved
    priced = [_priced(one, rates) for one in lines]
    money = None
    if rates.priced:
        node_hours = seconds / 3600 * rates.num_nodes
        money = sum(one.money or 0.0 for one in priced) + node_hours * (rates.price_per_node_hour or 0.0)
    gpu_hours = sum(one.gpu_hours for one in lines)
    return Estimate(priced, seconds, saved, gpu_hours, money, rates.currency, notes)


def _priced(one: Line, rates: Rates) -> Line:
    """The line with its money: GPUs that it holds, and requests. Nodes are paid for as a whole."""
    if not rates.priced:
        return one
    requests = one.num_requests / 1000 * (rates.price_per_1000_requests or 0.0)
    return replace(one, money=one.gpu_hours * (rates.price_per_gpu_hour or 0.0) + requests)
