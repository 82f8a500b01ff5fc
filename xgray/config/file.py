"""Experiment files and the options that change them, read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xgray.config import Experiment, merge, validate
from xgray.errors import InputError


class _Loader(yaml.SafeLoader):
    """Reads ``5e-6`` as the number that everybody means, where YAML 1.1 sees text.

    Refuses a key that is given twice, of which YAML would silently keep the last.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # PyYAML's, of 2024-31-12, !!bool x and !!timestamp x
            raise yaml.constructor.ConstructorError(
                problem=f"{node.value[:40]!r} is no {node.tag.rpartition(':')[2]}; quote a text",
                problem_mark=node.start_mark,
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments, and options with their values."""
    positional, options, rest = [], [], list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            positional.append(token)
            continue
        options.append(token)
        if "=" not in token and rest:
            options.append(rest.pop(0))
    return positional, options


def parse_overrides(tokens: list[str]) -> dict[str, Any]:
    """``--train.learning-rate 5e-6 --languages en,de`` as nested values; a value is read as YAML.

    Raises:
        InputError: a token is not of that form.
    """
    values: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        match = re.fullmatch(r"--([a-zA-Z][\w.-]*)(?:=(.*))?", token, re.DOTALL)
        if not match:
            raise InputError(f"cannot read {token!r}: overrides are written --section.field VALUE")
        if match[2] is None and not rest:
            raise InputError(f"{token} needs a value: {token} VALUE")
        text = rest.pop(0) if match[2] is None else match[2]
        path = match[1].replace("-", "_").split(".")
        try:
            value: Any = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise InputError(f"{token}: cannot read the value {text!r}; it is read as YAML, so quote it") from None
        if path == ["languages"] and isinstance(value, str):
            value = value.split(",")
        for key in reversed(path):
            value = {key: value}
        values = merge(values, value)
    return values


def load_experiment(path: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read an experiment file, with ``overrides`` laid over it.

    Raises:
        InputError: the file is missing, empty or no YAML, or a field is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the experiment file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the experiment file is not UTF-8 (byte {error.start + 1})") from None
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: no valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: an experiment file is a mapping with at least 'name' and 'model'")
    return validate(Experiment, merge(values, overrides or {}), str(path))
