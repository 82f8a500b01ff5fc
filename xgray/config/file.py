"""Read experiment files, and the options that override their fields."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from xgray.config import Experiment, ScorerTraining, merge, validate
from xgray.config.section import shorten
from xgray.config.shipped import shipped_scorers
from xgray.errors import InputError
from xgray.storage.parse import MAX_DEPTH, check_merged, check_values, read_small_file

TOO_DEEP = re.compile(rf"(?:[\[{{]\s*){{{MAX_DEPTH}}}")
"""Matches brackets that are opened one after the other."""

EMBEDDED_SCORER = "embedding"
"""The scorer that comes with the package as a whole, so that no file describes it."""


class _Constructor(SafeConstructor):
    """Constructs plain Python values; whatever is wrong with a node becomes an error with its line."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # of 2024-31-12, !!bool x and !!timestamp x
            problem = f"{node.value[:40]!r} is no {str(node.tag).rpartition(':')[2]}; quote a text"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from None

    def flatten_mapping(self, node: Node) -> Any:
        merged = super().flatten_mapping(node)
        check_merged(node.value)
        return merged

    def check_mapping_key(self, node: Node, key_node: Node, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:  # the library's message repeats the values, which may be secret
            raise ConstructorError(problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark)
        return True


def read_yaml(text: str) -> Any:
    """Return the value of a YAML 1.2 text, where ``5e-6`` is a number; a key that is given twice is an error.

    Raises:
        YAMLError: the text is not valid YAML, or too deep or large; a ``MarkedYAMLError`` has the line.
    """
    if TOO_DEEP.search(text):  # the library would take seconds to find it out
        raise YAMLError("it is nested too deeply")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        value = yaml.load(text)
        check_values(value)
    except RecursionError:
        raise YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:  # also of the library's bugs
        raise YAMLError(str(error).partition("\n")[0]) from None
    return value


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the positional arguments, and the options with their values."""
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
    """Return ``--train.learning-rate 5e-6 --languages en,de`` as nested values; a value is YAML text.

    ``--score NAME`` stands for all fields of a shipped scorer or of a scorer's file; later options change them. Given
    again, it adds a scorer to a list, of which later options change the first.

    Raises:
        InputError: a token has another form, a value is not valid YAML, there is no such scorer, or a section is given
            a value of its own and one of its fields another.
    """
    values: dict[str, Any] = {}
    num_scorers = 0
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
            value: Any = read_yaml(text)
        except YAMLError:
            raise InputError(
                f"{token}: cannot read the value {shorten(text)}; it is read as YAML, so quote it"
            ) from None
        if path[-1] == "languages" and isinstance(value, str):
            value = value.split(",")
        if path == ["score"] and isinstance(value, str):
            value, num_scorers = load_score(value), num_scorers + 1
            if num_scorers > 1 or isinstance(values.get("score"), list):
                value = [*_as_list(values["score"]), value]
        _refuse_section_and_field(values, path, value)
        for key in reversed(path):
            value = {key: value}
        values = merge(values, value)
    return values


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _refuse_section_and_field(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Refuse ``--train 5 --train.beta 1``, of which one would be lost; fields of a list change its first section."""
    given: Any = values
    for depth, key in enumerate(path):
        if key not in given:
            return
        given = given[key]
        if isinstance(given, list) or isinstance(value, list):
            return
        if isinstance(given, dict) != (depth < len(path) - 1 or isinstance(value, dict)):
            name = ".".join(path[: depth + 1]).replace("_", "-")
            raise InputError(f"--{name} is given a value of its own and one for a field of it; leave one of them out")


def load_experiment(path: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """Read an experiment file and override its fields.

    Args:
        path: the file, in YAML.
        overrides: nested values, as ``parse_overrides`` returns them.

    Raises:
        InputError: the file is missing, empty or not valid YAML, or a field is wrong.
    """
    values = read_mapping(path)
    if "sources" in values:
        raise InputError(f"{path}: this is the file of a scorer's training: xgray scorer train {path}")
    return validate(Experiment, merge(values, overrides or {}), str(path))


def load_scorer_training(path: Path, overrides: dict[str, Any] | None = None) -> ScorerTraining:
    """Read the file of a scorer's training and override its fields.

    Args:
        path: the file, in YAML.
        overrides: nested values, as ``parse_overrides`` returns them.

    Raises:
        InputError: the file is missing, empty or not valid YAML, or a field is wrong.
    """
    return validate(ScorerTraining, merge(read_mapping(path), overrides or {}), str(path))


def load_score(name: str) -> dict[str, Any]:
    """Return the fields of the ``score`` section of a scorer's file.

    Args:
        name: a file, the name of one that comes with the package, or ``embedding``, which needs no other field.

    Raises:
        InputError: there is no such file, or it holds no ``score`` section or something else beside it.
    """
    shipped = shipped_scorers()
    if name == EMBEDDED_SCORER:
        return {"scorer": EMBEDDED_SCORER}
    if name not in shipped and not Path(name).is_file():
        known = ", ".join([EMBEDDED_SCORER, *shipped])
        raise InputError(f"--score: no file {name!r}, and no scorer of that name; there are: {known}")
    path = shipped.get(name, Path(name))
    values = _read_file(path, "scorer's file")
    if not isinstance(values, dict) or list(values) != ["score"] or not isinstance(values["score"], dict):
        found = f" (found: {', '.join(map(str, values))})" if isinstance(values, dict) else ""
        raise InputError(f"{path}: a scorer's file holds the section 'score' and nothing else{found}")
    section: dict[str, Any] = values["score"]
    return section


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the fields of an experiment file, or of the file of a scorer's training, as they are written.

    Raises:
        InputError: the file is missing, empty or not valid YAML.
    """
    values = _read_file(path, "experiment file")
    if not isinstance(values, dict):
        raise InputError(f"{path}: an experiment file is a mapping with at least 'name' and 'model'")
    return values


def _read_file(path: Path, kind: str) -> Any:
    """Return the value of a YAML file; ``kind`` says in error messages what it is."""
    try:
        text = read_small_file(path).decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the {kind}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the {kind} is not UTF-8 (byte {error.start + 1})") from None
    try:
        return read_yaml(text)
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: no valid YAML: {getattr(error, 'problem', error)}") from None
