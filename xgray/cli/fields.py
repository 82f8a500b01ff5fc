"""Fields of the experiment file as options of a command, ``--train.learning-rate 5e-6``.

    xgray.config ──▶ xgray.config.fields ──▶ with_fields(command): help, completion, parsing ──▶ arguments

An option's value is YAML text. A field that is not given stays not given: the decorator hands those that are given to
the command among its ``arguments``, as they were typed, and ``parse_overrides`` reads them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import App, Group, Parameter

if TYPE_CHECKING:
    from xgray.config.fields import Field

PREFIX = "field_"
"""Begins the names of the parameters that are fields, so that none is taken for the command's own."""
MAX_DEFAULT = 60
"""A default in more characters than this is not shown in the help; ``xgray fields`` shows all."""


class CommandWithFields:
    """A command that takes fields of the experiment file as options too.

    The options are made when the command's signature is first looked at, which imports ``xgray.config``: the help of
    all commands does not need it.
    """

    def __init__(self, command: Callable[..., Any], sections: tuple[str, ...]) -> None:
        self.__name__ = command.__name__
        self.__doc__ = command.__doc__
        self._command = command
        self._sections = sections

    def __call__(self, *arguments: str, **options: Any) -> Any:
        """Call the command with the fields as ``--name value`` at the end of its arguments."""
        tokens = list(arguments)
        for name in [name for name in options if name.startswith(PREFIX)]:
            for value in options.pop(name):
                tokens += [_option(self._paths[name]), value]
        return self._command(*tokens, **options)

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        hints = get_type_hints(self._command, include_extras=True)
        signature = inspect.signature(self._command)
        hints["arguments"] = Annotated[str | Path, hints["arguments"].__metadata__[0]]  # a shell completes paths
        parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
        return signature.replace(parameters=[*parameters, *map(_parameter, self._fields)])

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]  # read by typing.get_type_hints
        return {name: parameter.annotation for name, parameter in self.__signature__.parameters.items()}

    @functools.cached_property
    def _fields(self) -> list[Field]:
        return _fields_of_sections(self._sections)

    @functools.cached_property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        return {_parameter_name(field): field.path for field in self._fields}


def with_fields(*sections: str) -> Callable[[Callable[..., Any]], CommandWithFields]:
    """Add the fields of these sections, or of the whole experiment file, to a command that takes ``*arguments``."""
    return lambda command: CommandWithFields(command, sections)


def add_command(app: App, command: App | Callable[..., Any], group: Group | None = None, position: int = 0) -> None:
    """Add a command to an application, without looking at the signature of one with fields: that takes time to make.

    Args:
        app: the application.
        command: a function, a command with fields, or an application of several commands.
        group: the panel of the help that the command stands in.
        position: its place in the panel.
    """
    if isinstance(command, CommandWithFields):
        command = App(name=command.__name__.replace("_", "-"), default_command=command)
    if not isinstance(command, App):
        app.command(command, group=group, sort_key=position)
        return
    if group is not None:
        command.group = group
    command.sort_key = position
    app.command(command)


def _fields_of_sections(sections: tuple[str, ...]) -> list[Field]:
    """The fields that are options: those with a value of their own, sections that are off by default, and ``score``."""
    from xgray.config import Experiment, Serve
    from xgray.config.fields import all_fields

    fields = [*all_fields(Experiment), *(all_fields(Serve, ("serve",)) if "serve" in sections else ())]
    return [
        field
        for field in fields
        if (field.section is None or field.is_list or field.is_off or field.path == ("score",))
        and (not sections or field.path[0] in sections)
    ]


def _parameter_name(field: Field) -> str:
    return PREFIX + "__".join(field.path)


def _option(path: tuple[str, ...]) -> str:
    return f"--{'.'.join(path).replace('_', '-')}"


@functools.cache
def _group(section: str) -> Group:
    """The panel of the help that a section's fields stand in; those of no section come first."""
    return Group.create_ordered(section)


def _parameter(field: Field) -> inspect.Parameter:
    from xgray.config.fields import yaml_value

    is_section = field.section is not None and not field.is_list
    has_default = not field.is_required and field.default is not None and not is_section
    default = yaml_value(field.default) if has_default else "off" if field.is_off else ""
    option = Parameter(
        name=_option(field.path),
        group=_group(field.path[0] if is_section or len(field.path) > 1 else "experiment"),
        help=field.documentation.replace("`", "'"),
        metavar=" | ".join(field.choices) or _metavar(field.type_text),
        choices=field.choices or None,
        show_choices=False,  # the metavar shows them
        show_default=default if 0 < len(default) <= MAX_DEFAULT else False,
        negative=(),
        consume_multiple=False,
        allow_leading_hyphen=True,
    )
    return inspect.Parameter(
        _parameter_name(field), inspect.Parameter.KEYWORD_ONLY, default=(), annotation=Annotated[list[str], option]
    )


def _metavar(type_text: str) -> str:
    """``INTEGER`` for ``integer >= 1, or null``."""
    words = type_text.removesuffix(", or null")
    return words if "|" in words else words.partition(" ")[0].upper()
