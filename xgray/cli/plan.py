"""``xgray plan``: what an experiment takes, before it is run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from xgray.cli.tables import CONSOLE
from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.config import Experiment
    from xgray.estimate.lines import Line
    from xgray.estimate.total import Estimate


Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]


def plan(
    *arguments: Arguments,
    rates: Path | None = None,
    measure: bool = False,
    write_rates: str | None = None,
    address: str | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Say what an experiment takes before it is run: rows, tokens, requests, hours and money.

    What is done already is subtracted. The rates are those of a file, or are measured in a few minutes; where both are
    asked for, what the file states counts.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml or a run directory, and fields to change: --section.field VALUE.
    rates
        A YAML file of rates and prices; its fields stand in xgray/estimate/rates.py. No model is needed, nor a cluster.
    measure
        Run a few steps and one batch of prompts of this very experiment, here or on the cluster, and go by that.
    write_rates
        A file for the measured rates, which --rates takes on another machine.
    address
        The Ray cluster to measure on; by default RAY_ADDRESS, or a local one.
    as_json
        Print the estimate as JSON.
    """
    from xgray.estimate.counts import count_work
    from xgray.estimate.rates import Rates, read_rates
    from xgray.estimate.rates import write_rates as write
    from xgray.estimate.total import estimate

    if rates is None and not measure:
        raise InputError("name the rates, --rates FILE, or have them measured, --measure")
    if write_rates and not measure:
        raise InputError("--write-rates: there is nothing to write without --measure")
    if address and not measure:
        raise InputError("--address: no cluster is needed without --measure")
    stated = read_rates(rates) if rates else Rates()
    experiment = _experiment(arguments)
    if measure and experiment.score.scorer == "openai" and stated.score is None:
        raise InputError("--measure: it sends nothing to score.openai.url; state score.texts_per_second (--rates FILE)")
    work = count_work(experiment, with_model=False)
    known = stated
    if measure:
        from xgray.cli.progress import ProgressDisplay
        from xgray.estimate.measure import calibrate

        began = time.perf_counter()
        with ProgressDisplay() as progress:
            measured = calibrate(experiment, work, address, progress)
        known = measured.with_stated(stated)
        work = count_work(experiment, with_model=True)
        work.notes.append(f"the measurement took {duration(time.perf_counter() - began)}")
        if write_rates:
            write(write_rates, known)
    told = estimate(experiment, work, known)
    if as_json:
        print(json.dumps({"name": experiment.name, **asdict(told)}, ensure_ascii=False))
    else:
        print_plan(experiment.name, told)


def _experiment(arguments: tuple[str, ...]) -> Experiment:
    from xgray.config import Experiment, merge, validate
    from xgray.config.file import load_experiment, parse_overrides, split
    from xgray.runs.resolved import load_run
    from xgray.storage.folder import Folder

    positional, options = split(arguments)
    overrides = parse_overrides(options)
    if len(positional) != 1:
        raise InputError("name one experiment file or run directory: xgray plan EXPERIMENT.yaml --rates RATES.yaml")
    if Path(positional[0]).suffix in (".yaml", ".yml"):
        return load_experiment(Path(positional[0]), overrides)
    resolved = load_run(Folder(positional[0])).model_dump(mode="json")
    experiment: Experiment = validate(Experiment, merge(resolved, overrides), positional[0])
    return experiment


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above one or so: ``12 s``, ``3.4 min``, ``5.0 h``, ``9.8 days``."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{int(unit > 1)}f} {name}"
    return f"{seconds / 86400:,.1f} days"


def print_plan(name: str, told: Estimate) -> None:
    """The table, and below it where its numbers come from."""
    CONSOLE.print(f"{name}: what is left to do", style="italic")
    columns = ["stage", "done", "left", "texts", "prompt tokens", "new tokens", "requests", "time", "GPU-hours"]
    if told.money is not None:
        columns.append(f"money{f', {told.currency}' if told.currency else ''}")
    table = Table()
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    for at, line in enumerate(told.lines):
        table.add_row(*_cells(line), end_section=at == len(told.lines) - 1 and not told.saved_seconds)
    if told.saved_seconds:
        saved = [""] * len(columns)
        saved[0], saved[7] = "generate and score overlap", f"-{duration(told.saved_seconds)}"
        table.add_row(*saved, end_section=True)
    total = [""] * len(columns)
    total[0], total[7], total[8] = "all", duration(told.seconds), f"{told.gpu_hours:,.2f}"
    if told.money is not None:
        total[9] = f"{told.money:,.2f}"
    table.add_row(*total)
    CONSOLE.print(table)
    stages: dict[str, dict[str, None]] = {}
    for line in told.lines:
        if line.source:
            stages.setdefault(line.source, {})[line.stage.partition("/")[0]] = None
    for source, own in stages.items():
        CONSOLE.print(f"{', '.join(own)}: {source}", soft_wrap=True)
    for note in told.notes:
        CONSOLE.print(f"- {note}", soft_wrap=True)


def _cells(line: Line) -> list[str]:
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
