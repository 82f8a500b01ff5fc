"""``xgray plan``: what an experiment takes, before it is run."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from xgray.cli.fields import with_fields
from xgray.cli.options import Arguments, Flag, Json, is_experiment_file, read_experiment
from xgray.cli.tables import new_table, print_line, print_table
from xgray.errors import InputError
from xgray.runs.progress import duration

if TYPE_CHECKING:
    from rich.table import Table

    from xgray.config import Experiment, ScorerTraining
    from xgray.estimate.lines import Line
    from xgray.estimate.rates import Rates
    from xgray.estimate.scorer_training import ScorerTrainingEstimate
    from xgray.estimate.total import Estimate
    from xgray.estimate.work import Work


@with_fields()
def plan(
    *arguments: Arguments,
    rates: Path | None = None,
    on: str | None = None,
    measure: Flag = False,
    write_rates: str | None = None,
    address: str | None = None,
    as_json: Json = False,
) -> None:
    """Say what an experiment takes before it is run: rows, tokens, requests, steps, hours and money.

    Finished work is subtracted. Hours and money need rates: estimates for a kind of GPU, a file, or a few minutes of
    measuring. A file's values override the others.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml or a run directory, or the file of a scorer's training. The options below change its fields.
    rates
        A YAML file of rates and prices; xgray/estimate/rates.py documents its fields. It needs no model and no cluster.
    on
        GPUs, such as 8xh100, 8xa100 or 1xa10g: estimates from published figures and AWS's prices, not measured.
    measure
        Run a few steps and one batch of prompts of this experiment, here or on the cluster, and use their speed.
    write_rates
        The file to write the measured rates to; --rates takes it on another machine.
    address
        The Ray cluster to measure on; by default RAY_ADDRESS, or a local one.
    as_json
        Print the estimate as JSON.
    """
    from xgray.estimate.rates import Rates, read_rates
    from xgray.estimate.total import estimate

    if training := _scorer_training(arguments):
        if address:
            raise InputError("--address: a scorer's training is measured in this process, on the machine to train on")
        if on:
            raise InputError("--on: no rates of a scorer's training ship; use --measure, or name them (--rates FILE)")
        _plan_scorer_training(training, rates, measure, write_rates, as_json)
        return
    if on and measure:
        raise InputError("--on: it replaces measuring; leave out one of --on and --measure")
    if write_rates and not measure:
        raise InputError("--write-rates: there is nothing to write without --measure")
    if address and not measure:
        raise InputError("--address: no cluster is needed without --measure")
    stated = read_rates(rates) if rates else Rates()
    experiment = _experiment(arguments)
    if measure:
        known, work = _measure(experiment, stated, address, write_rates)
    else:
        from xgray.estimate.counts import count_work
        from xgray.estimate.devices import rates_on
        from xgray.estimate.memory import memory_notes

        work = count_work(experiment, with_model=False)
        known = rates_on(on, experiment, work).with_stated(stated) if on else stated
        work.notes.extend(memory_notes(on, experiment, work) if on else ())
    result = estimate(experiment, work, known)
    if as_json:
        print(json.dumps({"name": experiment.name, **asdict(result)}, ensure_ascii=False))
    else:
        print_plan(experiment.name, result)


def _scorer_training(arguments: tuple[str, ...]) -> ScorerTraining | None:
    """Return the training of a scorer if the arguments name the file of one."""
    from xgray.config.file import load_scorer_training, parse_overrides, read_mapping, split

    paths, options = split(arguments)
    if len(paths) != 1 or not is_experiment_file(paths[0]) or "sources" not in read_mapping(Path(paths[0])):
        return None
    return load_scorer_training(Path(paths[0]), parse_overrides(options))


def _plan_scorer_training(
    section: ScorerTraining, rates: Path | None, measure: bool, write_rates: str | None, as_json: bool
) -> None:
    """Print what the training of a scorer takes; it is measured in this process, on one worker's share of a batch."""
    from xgray.estimate.rates import Rates, ScorerTrainingRates, read_rates
    from xgray.estimate.rates import write_rates as write
    from xgray.estimate.scorer_training import estimate_training, measure_tokens_per_second

    known = read_rates(rates).scorer_training if rates else None
    if measure and known is None:
        known = ScorerTrainingRates(
            source="measured: a few steps in one process",
            tokens_per_second=round(measure_tokens_per_second(section), 1),
        )
    if write_rates and known:
        write(write_rates, Rates(scorer_training=known))
    result = estimate_training(section, known.tokens_per_second if known else None)
    if as_json:
        print(json.dumps({"name": section.name, **asdict(result)}))
    else:
        print_scorer_training(section, result, known.source if known else None)


def print_scorer_training(section: ScorerTraining, estimate: ScorerTrainingEstimate, source: str | None) -> None:
    """Print what the training of a scorer takes, one quantity in each line."""
    table = new_table("what", "how much", "of", text_columns=("of",))
    counts = estimate.num_texts
    workers = section.execution.num_workers
    table.add_row("texts", f"{counts['train']:,}", f"{estimate.tokens_per_text:.1f} tokens each, from a sample")
    table.add_row("held out", f"{counts['validation'] + counts['test']:,}", "half to validate, half to measure")
    table.add_row("steps", f"{estimate.num_steps:,}", f"{section.batch_size} texts; it may stop early (patience)")
    table.add_row("tokens", f"{estimate.num_tokens:,}", "all steps, without padding")
    table.add_row("arithmetic", f"{estimate.flop / 1e15:,.1f} PFLOP", "steps and validations")
    table.add_row("memory", _gigabytes(estimate.memory_bytes), "one worker, by formula")
    table.add_row("disk", _gigabytes(estimate.disk_bytes), "the output folder: checkpoints, and the scorer")
    if estimate.seconds is None or estimate.tokens_per_second is None:
        table.add_row("time", "not estimated", "measure it here (--measure), or name the rate (--rates FILE)")
    else:
        speed = f"{estimate.tokens_per_second:,.0f} tokens/s of {workers} worker{'s' * (workers > 1)}"
        table.add_row("time", duration(estimate.seconds), f"{speed}; {source}")
    print_table(table, f"{section.name}: what its training takes")


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB"


def _measure(experiment: Experiment, stated: Rates, address: str | None, write_rates: str | None) -> tuple[Rates, Work]:
    """Return the measured rates, overridden by the ``stated`` ones, and what is left to do."""
    from xgray.cli.progress import ProgressDisplay
    from xgray.estimate.counts import count_work
    from xgray.estimate.measure import measure_rates
    from xgray.estimate.rates import write_rates as write

    if experiment.score.scorer == "openai" and stated.score is None:
        raise InputError("--measure: it sends nothing to score.openai.url; state score.texts_per_second (--rates FILE)")
    work = count_work(experiment, with_model=False)
    start = time.perf_counter()
    with ProgressDisplay() as progress:
        measured = measure_rates(experiment, work, address, progress)
    known = measured.with_stated(stated)
    work = count_work(experiment, with_model=True)
    work.notes.append(f"the measurement took {duration(time.perf_counter() - start)}")
    if write_rates:
        write(write_rates, known)
    return known, work


def _experiment(arguments: tuple[str, ...]) -> Experiment:
    from xgray.config.file import parse_overrides, split

    paths, options = split(arguments)
    found = read_experiment(paths, parse_overrides(options))
    if found is not None:
        return found[0]
    if len(paths) == 1:
        raise InputError(f"{paths[0]}: neither an experiment file nor a run directory")
    raise InputError("name one experiment file or run directory: xgray plan EXPERIMENT.yaml --rates RATES.yaml")


def print_plan(name: str, estimate: Estimate) -> None:
    """Print the estimate as a table, and below it where its numbers come from."""
    columns = ["stage", "done", "left", "texts", "prompt tokens", "new tokens", "requests", "time", "GPU-hours"]
    if not estimate.seconds and any(line.missing for line in estimate.lines):
        columns = columns[:-2]  # no rate is known
    if estimate.money is not None:
        columns.append(f"money{f', {estimate.currency}' if estimate.currency else ''}")
    table = new_table(*columns)
    for position, line in enumerate(estimate.lines):
        is_last = position == len(estimate.lines) - 1
        table.add_row(*_cells(line)[: len(columns)], end_section=is_last and not estimate.saved_seconds)
    if "time" in columns:
        _add_totals(table, len(columns), estimate)
    print_table(table, f"{name}: what is left to do")
    stages_by_source: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for line in estimate.lines:
        if line.source:
            stages_by_source[line.source][line.stage.partition("/")[0]] = None
    for source, stages in stages_by_source.items():
        print_line(f"{', '.join(stages)}: {source}")
    for note in estimate.notes:
        print_line(f"- {note}")


def _add_totals(table: Table, num_columns: int, estimate: Estimate) -> None:
    """Add the rows of the time saved and of the whole."""
    if estimate.saved_seconds:
        saved = [""] * num_columns
        saved[0], saved[7] = "generate and score overlap", f"-{duration(estimate.saved_seconds)}"
        table.add_row(*saved, end_section=True)
    total = [""] * num_columns
    total[0], total[7], total[8] = "all", duration(estimate.seconds), f"{estimate.gpu_hours:,.2f}"
    if estimate.money is not None:
        total[9] = f"{estimate.money:,.2f}"
    table.add_row(*total)


def _cells(line: Line) -> list[str]:
    """The cells of one stage, empty where there is nothing to count."""
    unit = line.unit.removesuffix("s") if line.num_left == 1 else line.unit
    cells = [
        line.stage,
        f"{line.num_done:,}" if line.num_done else "",
        f"{line.num_left:,} {unit}" if line.num_left else "nothing",
        f"{line.num_completions:,}" if line.num_completions else "",
        "" if line.prompt_tokens is None else f"{line.prompt_tokens:,}",
        f"{line.new_tokens:,}" if line.new_tokens else "",
        f"{line.num_requests:,}" if line.num_requests else "",
        ("not estimated" if line.seconds is None else duration(line.seconds)) if line.num_left else "",
        f"{line.gpu_hours:,.2f}" if line.gpu_hours else "",
    ]
    return cells if line.money is None else [*cells, f"{line.money:,.2f}" if line.money else ""]
