"""The commands that help to write an experiment file: ``fields`` and ``new``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from xgray.cli.options import Flag
from xgray.errors import InputError


def fields(section: str | None = None, *, json_schema: Annotated[Flag, Parameter("--json-schema")] = False) -> None:
    """Print the fields of the experiment file as commented YAML: defaults, types and what they mean.

    Parameters
    ----------
    section
        One section, such as train; by default the whole file, which is a valid experiment but for its model.
    json_schema
        Print a JSON schema instead, with which editors complete and check experiment files. Write it to a file and let
        the experiment file begin with "# yaml-language-server: $schema=FILE".
    """
    from xgray.config.fields import commented_yaml
    from xgray.config.fields import json_schema as schema

    if json_schema and section:
        raise InputError("--json-schema: the schema is of the whole file; leave out the section")
    print(json.dumps(schema(), indent=2) if json_schema else commented_yaml(section).rstrip())


def new(name: str, *, like: str | None = None) -> None:
    """Write NAME.yaml, an experiment file to start from.

    Parameters
    ----------
    name
        The experiment's name, of letters, digits, ".", "_" and "-".
    like
        An experiment that comes with xgray, such as mgpt or quickstart; by default a small one that runs anywhere.
    """
    from xgray.config import Experiment, validate
    from xgray.config.shipped import new_experiment

    text = new_experiment(name, like)
    validate(Experiment, {"name": name, "model": {"id": "unused"}}, "xgray new")
    file = Path(f"{name}.yaml")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise InputError(f"{file}: exists already and is left as it is; take another name or remove it") from None
    print(f"{file}: written. Run it with: xgray run {file}")
