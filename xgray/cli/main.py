"""The ``xgray`` command: its subcommands, and how errors reach the user.

A command's module is light: it imports what it needs when the command is called.

Exit codes: 0 done; 1 a stage failed and the same command resumes it; 2 wrong input or configuration.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import Any, Literal

from cyclopts import App, Group

from xgray.cli.failures import fail
from xgray.cli.fields import add_command
from xgray.cli.files import fields, new
from xgray.cli.options import Flag, Json
from xgray.cli.plan import plan
from xgray.cli.run import quickstart, report, run, stage_command
from xgray.cli.scorer import scorer
from xgray.cli.scores import scores
from xgray.cli.serve import serve
from xgray.cli.submit import submit
from xgray.config.stages import STAGES
from xgray.runs import interrupts
from xgray.runs.library_bars import hide_library_bars
from xgray.runs.secrets import redact
from xgray.runs.terminal import printable
from xgray.version import __version__

app = App(
    name="xgray",
    suppress_keyboard_interrupt=False,  # main() says what stays, and exits with 1
    version=__version__,
    help=(
        "Measure, reduce and explain toxicity in multilingual language models.\n\n"
        "An experiment is one YAML file: xgray new writes one to start from, and xgray fields explains it. Its fields "
        "are options of the commands that run it, as in --train.learning-rate 5e-6."
    ),
    help_format="plaintext",
)


def status(run_directory: str, *, as_json: Json = False) -> None:
    """Show which stages of a run are finished, running or missing, on any machine that sees its folder.

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


def doctor(*, as_json: Json = False) -> int:
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


def completion(shell: Literal["bash", "zsh", "fish"], *, install: Flag = False) -> None:
    """Print the script that completes commands, options and fields in a shell, or install it.

    Parameters
    ----------
    shell
        The shell to complete in.
    install
        Write the script where the shell looks for it, and name it in the shell's start-up file.
    """
    if install:
        print(f"{app.install_completion(shell=shell)}: written. It is in effect in a new shell")
    else:
        print(app.generate_completion(shell=shell))


COMMANDS: dict[str, list[Any]] = {
    "Run an experiment": [quickstart, new, fields, plan, run, status, report],
    "Single stages": [stage_command(stage) for stage in STAGES if stage.name != "report"],
    "Scores and scorers": [scores, scorer, serve],
    "Clusters": [submit],
    "This machine": [doctor, completion],
}
"""The commands by their panel of the help, in its order."""
for panel, commands in COMMANDS.items():
    group = Group.create_ordered(panel)
    for position, command in enumerate(commands):
        add_command(app, command, group, position)
app["--help"].group = app["--version"].group = Group.create_ordered("Help")


class _Printable(logging.Formatter):
    """Removes secrets from log lines, as a console may be kept as the log of a job, and what acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


def main() -> None:
    """Run the command line. An error is one line: :mod:`xgray.cli.failures`."""
    console = logging.StreamHandler()
    console.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[console])
    for noisy in ("huggingface_hub", "stamina"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("xgray").setLevel(logging.INFO)
    hide_library_bars()
    interrupts.listen()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale may have no character for what a model wrote
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(exit_on_error=False, print_error=False))
    except BrokenPipeError:  # the reader of a pipe has seen enough: xgray fields | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's flush at exit is silent too
        sys.exit(1)
    except (KeyboardInterrupt, Exception) as error:
        fail(error)


if __name__ == "__main__":
    main()
