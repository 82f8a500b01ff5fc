"""The commands that run stages: ``quickstart``, ``run``, ``report``, and one for each single stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from xgray.cli.fields import CommandWithFields, with_fields
from xgray.cli.options import Arguments, Flag, Json, paths_of_run, read_experiment
from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.config.stages import Stage
    from xgray.experiment.plan import Plan


@with_fields()
def quickstart(*arguments: Arguments, force: Flag = False, as_json: Json = False) -> None:
    """Run a whole experiment on an embedded model and data, on a CPU, in minutes.

    Parameters
    ----------
    arguments
        None are needed. The options below change fields of the experiment.
    force
        Compute results of another configuration again; the old ones are deleted when theirs are finished.
    as_json
        Print the metrics as JSON.
    """
    from xgray.config.shipped import shipped_experiment

    _run((str(shipped_experiment("quickstart")), *arguments), force=force, as_json=as_json)


@with_fields()
def run(
    *arguments: Arguments,
    only: str | None = None,
    force: Flag = False,
    address: str | None = None,
    as_json: Json = False,
) -> None:
    """Run all stages of an experiment, or resume them: finished stages are passed over.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml. The options below change its fields.
    only
        Run these stages alone, separated by commas: train,generate. The commands of single stages name them all.
    force
        Compute results of another configuration again; the old ones are deleted when theirs are finished.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one for this run.
    as_json
        Print the metrics as JSON.
    """
    _run(arguments, names=None if only is None else _stage_names(only), force=force, address=address, as_json=as_json)


@with_fields()
def report(*arguments: Arguments, as_json: Json = False) -> None:
    """Write the report of a run again.

    Parameters
    ----------
    arguments
        A run directory or EXPERIMENT.yaml. The options below change fields: --report.mask false.
    as_json
        Print the metrics as JSON.
    """
    _run(arguments, names=("report",), as_json=as_json)


def stage_command(stage: Stage) -> CommandWithFields:
    """Return the command that runs one stage, of an experiment or on the user's own files."""

    def command(*arguments: Arguments, force: Flag = False, address: str | None = None, as_json: Json = False) -> None:
        _run(arguments, (stage.name,), force, address, as_json, section=stage.section)

    command.__name__ = stage.name
    command.__doc__ = f"""{stage.summary}

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml or a run directory; the options below change its fields. On your own files instead:
        {stage.own_files}.
    force
        Compute results of another configuration again; the old ones are deleted when theirs are finished.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    as_json
        Print the result as JSON.
    """
    return with_fields()(command)


def _run(
    arguments: tuple[str, ...],
    names: tuple[str, ...] | None = None,
    force: bool = False,
    address: str | None = None,
    as_json: bool = False,
    section: str | None = None,
) -> None:
    """Run the stages ``names``, all by default, and print the result; ``section`` is turned on."""
    from xgray.cli.progress import ProgressDisplay
    from xgray.cli.submit import check_folders
    from xgray.config.stages import stage_names
    from xgray.distributed.job_environment import in_job
    from xgray.experiment.driver import run_experiment

    plan = _make_plan(arguments, section, force)
    if in_job():
        check_folders(plan.experiment)
    with ProgressDisplay() as progress:
        run_experiment(plan, names, force, address, progress)
    shown = names or stage_names()
    if as_json:
        print(json.dumps(_result(plan, shown), ensure_ascii=False))
    else:
        from xgray.cli.tables import print_summary

        print_summary(plan, shown)


def _stage_names(text: str) -> tuple[str, ...]:
    """``"train,generate"`` as names of stages, in the order in which they run.

    Raises:
        InputError: one of them is no stage.
    """
    from xgray.config.stages import stage_names

    chosen = tuple(name.strip() for name in text.split(","))
    for name in chosen:
        if name not in stage_names():
            raise InputError(f"--only: unknown stage {name!r}; stages are {', '.join(stage_names())}")
    return tuple(name for name in stage_names() if name in chosen)


def _make_plan(arguments: tuple[str, ...], section: str | None, force: bool) -> Plan:
    """Return the plan of an experiment file, a run directory, files of completions or scores, or of options alone.

    ``section`` is turned on with its defaults where the experiment lacks it.
    """
    from xgray.config import Experiment, merge, validate
    from xgray.config.file import parse_overrides, split
    from xgray.experiment.import_files import import_files, imported_generations
    from xgray.experiment.plan import make_plan

    paths, options = split(arguments)
    overrides = parse_overrides(options)
    if found := read_experiment(paths, overrides, section):
        experiment, folder = found
        if folder is None:
            return make_plan(experiment)
        with paths_of_run(folder):
            return make_plan(experiment, imported_generations(folder, experiment))
    if paths:
        return import_files(paths, overrides, force)
    if not overrides:
        raise InputError("name an experiment file: xgray run EXPERIMENT.yaml; xgray new NAME writes one to start from")
    return make_plan(validate(Experiment, merge({section: {}} if section else {}, overrides), "options"))


def _result(plan: Plan, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the run's metrics, the manifests of the stages ``names``, and the metrics of those inside the network."""
    chosen = [planned for planned in plan.stages if planned.stage.command in names]
    inside = [planned for planned in chosen if planned.stage.inside and planned.is_finished]
    evaluate = plan.stage("evaluate")
    return {
        "run": plan.run.uri,
        "stages": {planned.label: planned.place.manifest() for planned in chosen},
        "metrics": evaluate.folder.read_mapping("metrics.json") if evaluate.is_finished else None,
        **_robustness(plan),
        "mechanism": {planned.label: planned.folder.read_mapping("metrics.json") for planned in inside},
    }


def _robustness(plan: Plan) -> dict[str, Any]:
    """Return the metrics of all scorers, where there are several; they are None while they are not computed."""
    planned = plan.find("robustness")
    if planned is None:
        return {}
    return {"robustness": planned.folder.read_mapping("metrics.json") if planned.is_finished else None}
