"""What the fields of the experiment file are: name, type, default, documentation.

The models of ``xgray.config`` are the single source. The command line makes its options from these fields, and
``xgray fields`` prints them as commented YAML or as a JSON schema.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from xgray.config.experiment import Experiment
from xgray.errors import InputError

EXAMPLE_VALUES = {("name",): "my-experiment", ("model", "id"): "FOLDER-OR-HUB-ID"}
"""Stand in ``commented_yaml`` for the two values that have no default."""

COMMENT_WIDTH = 100
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true | false", type(None): "null", Any: "any value"}


@dataclass(frozen=True)
class Field:
    """One field of a section of the experiment file."""

    path: tuple[str, ...]
    """Its names from the top of the file: ``("train", "learning_rate")``."""
    type_text: str
    """The type in words, with its bounds: ``integer >= 1, or null``."""
    default: Any
    """The default as YAML would hold it: a section's is a mapping. ``None`` for a field that is required."""
    is_required: bool
    documentation: str
    """The docstring below the field; for a section that has none, the section's docstring."""
    choices: tuple[str, ...] = ()
    """The values of a field that takes some words only."""
    section: type[BaseModel] | None = None
    """The section that the field holds, or that each item of its list is."""
    is_list: bool = False
    """Whether the field holds a list of sections."""

    @property
    def is_off(self) -> bool:
        """Whether the field is a section that is left out unless the file has it."""
        return self.section is not None and self.default is None and not self.is_required


def fields_in(section: type[BaseModel], path: tuple[str, ...] = ()) -> list[Field]:
    """Return the fields directly in ``section``, whose own place in the file is ``path``."""
    return [_field(info, (*path, name)) for name, info in section.model_fields.items() if not _is_hidden(info)]


def all_fields(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Field]:
    """Yield the fields of ``section`` and of the sections in it, each section before its fields."""
    for field in fields_in(section, path):
        yield field
        if field.section is not None and not field.is_list:
            yield from all_fields(field.section, field.path)


def _is_hidden(info: FieldInfo) -> bool:
    """Whether a file never holds the field under its own name."""
    return any(type(item) is SkipJsonSchema for item in info.metadata)


def _field(info: FieldInfo, path: tuple[str, ...]) -> Field:
    annotation = info.annotation
    section = next((part for part in _parts(annotation) if inspect.isclass(part) and issubclass(part, BaseModel)), None)
    documentation = info.description or (vars(section).get("__doc__") if section else None) or ""
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return Field(
        path=path,
        type_text=_type_text(annotation, info.metadata),
        default=_plain(default),
        is_required=info.is_required(),
        documentation=" ".join(inspect.cleandoc(documentation).replace("``", "`").split()),
        choices=tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else (),
        section=section,
        is_list=any(get_origin(part) is list for part in _parts(annotation)) and section is not None,
    )


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation and the types that it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from _parts(part)


def _plain(value: Any) -> Any:
    """The value with models as mappings of the fields that were set in them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """``integer >= 1, or null``, ``sigmoid | hinge | ipo``, ``list of text``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        kinds = [_type_text(part, metadata) for part in arguments if part is not type(None)]
        return f"{' or '.join(kinds)}, or null" if type(None) in arguments else " or ".join(kinds)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        item = _type_text(arguments[0])
        return f"list of ({item})" if " or " in item else f"list of {item}"
    if origin is tuple:
        return f"[{', '.join(_type_text(part) for part in arguments)}]"
    if origin is dict or (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        return "mapping"
    return TYPE_NAMES.get(annotation, "text") + _bounds_text(metadata)


def _bounds_text(metadata: Sequence[Any]) -> str:
    """`` >= 0 and < 1``; pydantic keeps bounds as objects with one attribute each."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{sign} {getattr(item, name)}" for item in metadata for name, sign in signs.items() if hasattr(item, name)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def yaml_value(value: Any) -> str:
    """Return the value in YAML on one line, the same in YAML 1.1 and 1.2: ``1.0e-05``, ``[en, de]``, ``null``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_value(item)}' for key, item in value.items())}}}"
    text = str(value)
    return text if re.match(r"[\w./-]", text) else json.dumps(text, ensure_ascii=False)


def commented_yaml(section: str | None = None) -> str:
    """Return the experiment file, or one section of it, with every field's default, type and documentation.

    Sections that are off by default are commented out; a section that is asked for by name is on.

    Raises:
        InputError: there is no such section.
    """
    if section is None:
        return "\n".join(_section_lines(Experiment, ())) + "\n"
    fields = {field.path[0]: field for field in fields_in(Experiment)}
    field = fields.get(section.replace("-", "_"))
    if field is None:
        raise InputError(f"unknown section {section!r}; the file has: {', '.join(fields)}")
    return "\n".join(_field_lines(field, is_on=True)) + "\n"


def _section_lines(section: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    return [line for field in fields_in(section, path) for line in _field_lines(field)]


def _field_lines(field: Field, is_on: bool = False) -> list[str]:
    """The lines of one field: its documentation as a comment, and ``name: default  # type``."""
    indent = "  " * (len(field.path) - 1)
    lines = [
        f"{indent}# {line}"
        for line in textwrap.wrap(field.documentation.replace("`", "'"), COMMENT_WIDTH - len(indent))
    ]
    name = field.path[-1]
    if field.section is None or field.is_list:
        value = EXAMPLE_VALUES.get(field.path, "TEXT") if field.is_required else yaml_value(field.default)
        lines.append(f"{indent}{name}: {value}  # {field.type_text}{' (required)' if field.is_required else ''}")
        if field.section is not None:
            lines += _item_lines(field, indent)
        return lines
    block = [f"{indent}{name}:", *_section_lines(field.section, field.path)]
    if field.is_off and not is_on:
        lines.append(f"{indent}# Off unless the file has this section; '{name}: {{}}' takes its defaults.")
        block = [f"{indent}#{line[len(indent) :]}" for line in block]
    return lines + block


def _item_lines(field: Field, indent: str) -> list[str]:
    """What each item of a list of sections holds, as a comment."""
    assert field.section is not None
    lines = [f"{indent}# Each item is a mapping:"]
    for item in fields_in(field.section):
        text = f"- {item.path[0]}: {item.type_text}{' (required)' if item.is_required else ''}. {item.documentation}"
        lines += [f"{indent}# {line}" for line in textwrap.wrap(text, COMMENT_WIDTH)]
    return lines


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the experiment file, with which editors complete and check it."""
    schema = Experiment.model_json_schema()
    score = schema["properties"]["score"]
    section = {"$ref": score.pop("$ref")}
    score["anyOf"] = [section, {"type": "array", "items": section, "minItems": 1}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
