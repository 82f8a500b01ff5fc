"""The ``xgray`` command. Each command is short and imports what it needs when it is called.

Exit codes: 0 done; 1 a stage failed and the same command resumes it; 2 wrong input or configuration.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from xgray import __version__
from xgray.cli.plan import plan
from xgray.cli.scorer import scorer
from xgray.cli.scores import scores
from xgray.cli.serve import serve
from xgray.cli.submit import check_folders, submit
from xgray.distributed.job_environment import in_job
from xgray.errors import InputError, XgrayError
from xgray.runs import interrupts
from xgray.runs.secrets import without_secrets

if TYPE_CHECKING:
    from xgray.experiment.plan import Plan


app = App(
    name="xgray",
    suppress_keyboard_interrupt=False,  # main() says what stays, and exits with 1
    version=__version__,
    help="Measure, reduce and explain toxicity in multilingual language models.",
    help_epilogue=(
        "Any field of the experiment file can be given as an option: --train.learning-rate 5e-6. "
        "The fields and what they mean stand in xgray/config/; jobs/ holds experiment files to start from."
    ),
)

app.command(plan)
app.command(scores)
app.command(scorer)
app.command(serve)
app.command(submit)

Arguments = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""EXPERIMENT.yaml and any ``--section.field VALUE``."""


@app.command
def quickstart(
    *arguments: Arguments, force: bool = False, as_json: Annotated[bool, Parameter("--json")] = False
) -> None:
    """Run the whole experiment on an embedded model and data, on a CPU, in minutes.

    Parameters
    ----------
    arguments
        Fields of the experiment to change: --section.field VALUE.
    force
        Do finished stages of another configuration again.
    as_json
        Print the metrics as JSON.
    """
    experiment = str(files("xgray") / "embedded" / "quickstart.yaml")
    _run((experiment, *arguments), None, force, None, as_json)


@app.command
def run(
    *arguments: Arguments,
    only: str | None = None,
    force: bool = False,
    address: str | None = None,
    as_json: Annotated[bool, Parameter("--json")] = False,
) -> None:
    """Run all stages of an experiment, or resume them: what is finished is passed over.

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml and fields to change: --section.field VALUE.
    only
        Some of train,generate,score,evaluate,probe,vectors,activations,intervene,retrieve,transfer,capability,report.
    force
        Do finished stages of another configuration again.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one for this run.
    as_json
        Print the metrics as JSON.
    """
    _run(arguments, only, force, address, as_json)


def _stage_command(stage: str, summary: str, own_files: str) -> None:
    def command(
        *arguments: Arguments,
        force: bool = False,
        address: str | None = None,
        as_json: Annotated[bool, Parameter("--json")] = False,
    ) -> None:
        from xgray.config import MECHANISM

        _run(arguments, stage, force, address, as_json, section=stage if stage in MECHANISM else None)

    command.__doc__ = f"""{summary}

    Parameters
    ----------
    arguments
        EXPERIMENT.yaml and fields to change, --section.field VALUE. On files of your own: {own_files}
    force
        Do the stage again if it is finished with another configuration.
    address
        The Ray cluster to join; by default RAY_ADDRESS, or a local one.
    as_json
        Print the result as JSON.
    """
    app.command(command, name=stage)


_stage_command(
    "train",
    "Tune the model on preference pairs.",
    "--name NAME --model.id FOLDER --train.pairs FILE.jsonl, without an experiment file.",
)
_stage_command(
    "generate",
    "Sample completions of the prompts from the base model and its variants.",
    "--name NAME --model.id FOLDER --prompts.path FILE --variants [], without an experiment file.",
)
_stage_command(
    "score",
    "Score completions for toxicity.",
    "--name NAME [MODEL=]FILE ..., completions as output-rtp_lx_LANG.json or Parquet.",
)
_stage_command(
    "evaluate",
    "Compute toxicity, fluency and diversity with intervals.",
    "--name NAME [MODEL=]FILE ..., scores as perspective_api_eval-*.json.",
)


_MODEL = "--name NAME --model.id FOLDER"
_stage_command("probe", "Fit a direction that tells toxic texts from others.", f"{_MODEL} --probe.data FILE.csv.")
_stage_command(
    "vectors",
    "Find the value vectors that point the probe's way, and which of them are active.",
    f"{_MODEL} --probe {{}}.",
)
_stage_command(
    "activations",
    "Measure the sources' mean activation after each prompt, for every model.",
    f"{_MODEL} --activations.neurons [[LAYER,INDEX],...] --variants [].",
)
_stage_command(
    "intervene",
    "Sample, score and evaluate while chosen neurons are pushed.",
    f"{_MODEL} --intervene.neurons [[LAYER,INDEX],...] --variants [].",
)
_stage_command(
    "retrieve",
    "Measure how well sentences find their English translations, layer by layer.",
    f"{_MODEL} --retrieve.parallel FOLDER --variants [].",
)
_stage_command("transfer", "Correlate retrieval with the change of toxicity.", "a run that was evaluated.")
_stage_command(
    "capability",
    "Run lm-evaluation-harness on every model.",
    f"{_MODEL} --capability.tasks [TASK,...] --variants [].",
)


@app.command
def report(*arguments: Arguments, as_json: Annotated[bool, Parameter("--json")] = False) -> None:
    """Write the report of a run again.

    Parameters
    ----------
    arguments
        A run directory or EXPERIMENT.yaml, and fields to change: --report.mask false.
    as_json
        Print the metrics as JSON.
    """
    _run(arguments, "report", False, None, as_json)


@app.command
def status(run_directory: str, *, as_json: Annotated[bool, Parameter("--json")] = False) -> None:
    """Show what of a run is done, running and missing, on any machine that sees its folder.

    Parameters
    ----------
    run_directory
        The run's folder or URI.
    as_json
        Print the states as JSON.
    """
    from dataclasses import asdict

    from xgray.cli.tables import print_state
    from xgray.runs.status import run_state
    from xgray.storage.folder import Folder

    state = run_state(Folder(run_directory))
    if as_json:
        print(json.dumps(asdict(state)))
    else:
        print_state(state)


@app.command
def doctor(*, as_json: Annotated[bool, Parameter("--json")] = False) -> int:
    """Say what this machine can run, and what is missing.

    Parameters
    ----------
    as_json
        Print the checks as JSON.
    """
    from dataclasses import asdict

    from xgray.cli.doctor import QUICKSTART, examine
    from xgray.cli.tables import print_checks

    checks = examine()
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        print_checks(checks)
    return int(any(check.name == QUICKSTART and check.status == "missing" for check in checks))


def _run(
    arguments: tuple[str, ...],
    only: str | None,
    force: bool,
    address: str | None,
    as_json: bool,
    section: str | None = None,
) -> None:
    from xgray.cli.progress import ProgressDisplay
    from xgray.cli.tables import print_summary
    from xgray.experiment.driver import run_experiment

    plan = _plan(arguments, section, force)
    if in_job():
        check_folders(plan.experiment)
    stages = _stages(only)
    with ProgressDisplay() as progress:
        run_experiment(plan, None if only is None else stages, force, address, progress)
    if as_json:
        print(json.dumps(_result(plan, stages), ensure_ascii=False))
    else:
        print_summary(plan, stages)


def _stages(names: str | None) -> tuple[str, ...]:
    """``"train,generate"`` as stage names.

    Raises:
        InputError: one of them is no stage.
    """
    from xgray.config.stages import stage_names

    if names is None:
        return stage_names()
    chosen = tuple(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in stage_names():
            raise InputError(f"--only: unknown stage {name!r}; stages are {', '.join(stage_names())}")
    return tuple(name for name in stage_names() if name in chosen)


def _plan(arguments: tuple[str, ...], section: str | None, force: bool) -> Plan:
    """What the arguments ask for; ``section`` is in the experiment with its defaults if the file lacks it."""
    from xgray.config import Experiment, merge, validate
    from xgray.config.file import load_experiment, parse_overrides, split
    from xgray.experiment.import_files import import_files, imported_generations
    from xgray.experiment.plan import make_plan
    from xgray.runs.resolved import load_run
    from xgray.storage.folder import Folder

    positional, options = split(arguments)
    overrides = parse_overrides(options)
    if section == "transfer":
        section = "retrieve"
    if len(positional) == 1 and Path(positional[0]).suffix in (".yaml", ".yml"):
        experiment = load_experiment(Path(positional[0]), overrides)
        if section and getattr(experiment, section) is None:
            experiment = load_experiment(Path(positional[0]), merge({section: {}}, overrides))
        return make_plan(experiment)
    if len(positional) == 1 and (folder := Folder(positional[0])).exists("experiment.yaml"):
        resolved = load_run(folder).model_dump(mode="json")
        if section and resolved[section] is None:
            resolved[section] = {}
        experiment = validate(Experiment, merge(resolved, overrides), positional[0])
        return make_plan(experiment, imported_generations(folder, experiment))
    if positional:
        return import_files(positional, overrides, force)
    if not overrides:
        raise InputError("an experiment file is missing: xgray run EXPERIMENT.yaml (jobs/ holds some)")
    return make_plan(validate(Experiment, merge({section: {}} if section else {}, overrides), "options"))


def _result(plan: Plan, stages: tuple[str, ...]) -> dict[str, Any]:
    """The run's metrics, those of the stages that were asked for, and these stages' manifests."""
    asked = [one for one in plan.stages if one.name in stages]
    inside = [stage for stage in asked if stage.stage.inside and stage.is_finished]
    folder = plan.stage("evaluate").folder
    return {
        "run": plan.run.uri,
        "stages": {one.label: one.place.manifest() for one in asked},
        "metrics": folder.read_json("metrics.json") if plan.stage("evaluate").is_finished else None,
        "mechanism": {stage.label: stage.folder.read_json("metrics.json") for stage in inside},
    }


class _WithoutSecrets(logging.Formatter):
    """A console is kept, too: as the log of a job, or of a scheduler."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def main() -> None:
    """Entry point: one line for what the user can mend, a traceback only for what is our own fault."""
    console = logging.StreamHandler()
    console.setFormatter(_WithoutSecrets("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    for noisy in ("huggingface_hub", "stamina"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("xgray").setLevel(logging.INFO)
    interrupts.listen()
    try:
        sys.exit(app())
    except KeyboardInterrupt:
        _fail(f"{interrupts.reason()}; what is done stays, and the same command goes on from there", 1)
    except XgrayError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; what is done stays: mend it and call the same command", 1)


def _fail(message: str, code: int) -> None:
    print(f"xgray: {without_secrets(message)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
