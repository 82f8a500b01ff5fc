"""Write ``configuration.md`` from the docstrings of the experiment file's fields; ``make docs`` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

from xgray.config import Experiment, ScorerTraining, TextSource
from xgray.config.fields import Field, all_fields, fields_in, yaml_value

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration

<!-- Written by docs/write_configuration.py from the docstrings of xgray/config; a test compares them. -->

One YAML file is one experiment. Every field has a default except `name` and `model.id`; unknown keys are refused with
the nearest known one. Any field can be given as an option of the commands, which wins over the file:
`--train.learning-rate 5e-6`.

`xgray fields` prints the same as commented YAML, and `xgray fields --json-schema` a schema with which editors complete
and check the file. Sections from `probe` to `capability` are off unless the file has them; `probe: {}` takes the
defaults.
"""


TRAINING = """\
## The file of `xgray scorer train`

One YAML file is the training of one scorer ([how](scoring.md#a-scorer-of-your-own)). Its fields are options of the
command too.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## The experiment\n", _table([field for field in fields_in(Experiment) if not _is_section(field)])]
    for section in fields_in(Experiment):
        if _is_section(section):
            fields = [field for field in all_fields(Experiment) if field.path[0] == section.path[0]][1:]
            documentation = f"{section.documentation}\n" if section.documentation else ""
            leaves = [field for field in fields if not _is_section(field)]
            parts += [f"## {section.path[0]}\n", documentation, _table(leaves)]
    training = [field for field in all_fields(ScorerTraining) if not _is_section(field)]
    parts += [TRAINING, _whole_table(training), "Each of `sources` is a mapping:\n", _table(fields_in(TextSource))]
    return "\n".join(parts)


def _is_section(field: Field) -> bool:
    return field.section is not None and not field.is_list


def _table(fields: list[Field]) -> str:
    """The fields of a section, named without it."""
    return _rows([(".".join(field.path[1:] or field.path), field) for field in fields])


def _whole_table(fields: list[Field]) -> str:
    """The fields of a whole file."""
    return _rows([(".".join(field.path), field) for field in fields])


def _rows(fields: list[tuple[str, Field]]) -> str:
    rows = [
        f"| `{name}` | {_cell(field.type_text)} | {_default(field)} | {_cell(field.documentation)} |"
        for name, field in fields
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _default(field: Field) -> str:
    if field.is_required:
        return "required"
    text = yaml_value(field.default)
    return f"`{text}`" if len(text) < 60 else "see `xgray fields`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
