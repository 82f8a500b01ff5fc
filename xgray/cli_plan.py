"""``xgray plan``: what an experiment takes, before it is run."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.config import Experiment

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
        A YAML file of rates and prices; its fields stand in xgray/rates.py. No model is needed, nor a cluster.
    measure
        Run a few steps and one batch of prompts of this very experiment, here or on the cluster, and go by that.
    write_rates
        A file for the measured rates, which --rates takes on another machine.
    address
        The Ray cluster to measure on; by default RAY_ADDRESS, or a local one.
    as_json
        Print the estimate as JSON.
    """
    from xgray.display_plan import duration, print_plan
    from xgray.estimate import estimate
    from xgray.rates import Rates, read_rates
    from xgray.rates import write_rates as write
    from xgray.workload import count_work

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
        from xgray.calibrate import calibrate
        from xgray.progress import ProgressDisplay

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
    from xgray.experiment_file import load_experiment, parse_overrides, split
    from xgray.status import load_run
    from xgray.storage import Folder

    positional, options = split(arguments)
    overrides = parse_overrides(options)
    if len(positional) != 1:
        raise InputError("name one experiment file or run directory: xgray plan EXPERIMENT.yaml --rates RATES.yaml")
    if Path(positional[0]).suffix in (".yaml", ".yml"):
        return load_experiment(Path(positional[0]), overrides)
    resolved = load_run(Folder(positional[0])).model_dump(mode="json")
    experiment: Experiment = validate(Experiment, merge(resolved, overrides), positional[0])
    return experiment
