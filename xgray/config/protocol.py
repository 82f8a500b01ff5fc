"""The protocol of an experiment, which sets the default of every switch between ``corrected`` and ``released``.

A switch is a field of the type :data:`~xgray.config.section.Switch` below the experiment's sections. A switch that the
experiment file does not set takes the experiment's ``protocol``; one that it sets keeps its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from xgray.config.section import Section, Switch

SwitchPath = tuple[str, ...]
"""A switch's place in the experiment file: ``("evaluate", "fluency", "protocol")``."""


def switch_paths(section: type[BaseModel]) -> Iterator[tuple[SwitchPath, bool]]:
    """Yield every switch below a section, and whether all sections on its way are there without the file naming them.

    The section's own field ``protocol``, if it has one, is among them.
    """
    for name, field in section.model_fields.items():
        if get_origin(field.annotation) is list:
            continue
        if get_args(field.annotation) == get_args(Switch):
            yield (name,), True
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Section):
                is_on = field.get_default(call_default_factory=True) is not None
                yield from (((name, *path), is_on and is_there) for path, is_there in switch_paths(part))


def with_protocol(values: Mapping[str, Any], protocol: str, experiment: type[BaseModel]) -> dict[str, Any]:
    """Return the values of an experiment file in which every switch that they leave open has the value ``protocol``.

    Sections that are off stay off.

    Args:
        values: as the file holds them; sections may be models.
        experiment: the model of the experiment file.
    """
    below = ((path, is_there) for path, is_there in switch_paths(experiment) if len(path) > 1)
    filled: dict[str, Any] = _filled(values, protocol, below)
    for name, section in _sections_in_lists(experiment):
        if isinstance(filled.get(name), list):
            filled[name] = [_filled(item, protocol, switch_paths(section)) for item in filled[name]]
    return filled


def _sections_in_lists(experiment: type[BaseModel]) -> Iterator[tuple[str, type[Section]]]:
    """Yield the fields of an experiment that are lists of sections."""
    for name, field in experiment.model_fields.items():
        if get_origin(field.annotation) is list:
            (part,) = get_args(field.annotation)
            if isinstance(part, type) and issubclass(part, Section):
                yield name, part


def _filled(values: Any, protocol: str, switches: Iterable[tuple[SwitchPath, bool]]) -> Any:
    """Return the values of a section in which those of its switches that they leave open are set."""
    if isinstance(values, BaseModel):
        values = values.model_dump(exclude_unset=True)
    if not isinstance(values, Mapping):  # it is refused when it is validated
        return values
    filled = dict(values)
    for path, is_there in switches:
        if is_there or _names_section(filled, path[:-1]):
            _set_default(filled, path, protocol)
    return filled


def without_default_switches(values: dict[str, Any], experiment: type[BaseModel]) -> dict[str, Any]:
    """Return a resolved experiment's values without the switches that have the value of its protocol.

    Another protocol that is laid over these values then reaches the switches.
    """
    protocol = values.get("protocol", "corrected")
    for path, _ in switch_paths(experiment):
        section = _section_at(values, path[:-1])
        if len(path) > 1 and section is not None and section.get(path[-1]) == protocol:
            values = _without(values, path)
    return values


def _names_section(values: Mapping[str, Any], path: Sequence[str]) -> bool:
    current: Any = values
    for key in path:
        if isinstance(current, BaseModel):
            current = dict(current)
        if not isinstance(current, Mapping) or current.get(key) is None:
            return False
        current = current[key]
    return True


def _set_default(values: dict[str, Any], path: SwitchPath, value: str) -> None:
    """Set the field at ``path`` where nothing has set it; the sections on the way are copied."""
    name = path[0]
    if len(path) == 1:
        values.setdefault(name, value)
        return
    section = values.get(name, {})
    if isinstance(section, BaseModel):
        section = section.model_dump(exclude_unset=True)
    if isinstance(section, Mapping):  # anything else is refused when it is validated
        values[name] = dict(section)
        _set_default(values[name], path[1:], value)


def _section_at(values: Any, path: Sequence[str]) -> dict[str, Any] | None:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else None


def _without(values: dict[str, Any], path: SwitchPath) -> dict[str, Any]:
    if len(path) == 1:
        return {key: value for key, value in values.items() if key != path[0]}
    return {**values, path[0]: _without(values[path[0]], path[1:])}
