"""What every section of the experiment file has in common, and how one is validated."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xgray.errors import InputError

Switch = Literal["corrected", "released"]


class Section(BaseModel):
    """A part of the experiment file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,  # an address may hold a password
    )


class Model(Section):
    id: str
    """A Hugging Face model id, a local folder, a GGUF file, or ``pkg://package/file.gguf`` for one in a package."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The precision in which the model generates and is measured; training has its own."""


class MeasuringExecution(Section):
    """How a stage is run that measures texts with one model."""

    num_workers: int | None = Field(None, ge=1)
    """Copies of the model side by side; by default one for each GPU, or for each machine without."""
    batch_size: int = Field(32, ge=1)
    """Texts in one forward pass."""


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, section by section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def fields_at(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys that are known in the section that holds ``location``."""
    current: type[BaseModel] = section
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = current.model_fields[key].annotation if key in current.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        nested = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


def validate(section: type[Any], values: dict[str, Any], where: str) -> Any:
    """The section built from ``values``.

    Raises:
        InputError: one line per wrong field, with the nearest known key for an unknown one.
    """
    try:
        return section.model_validate(values)
    except InputError as error:  # of a section within, which names its own place
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = fields_at(section, problem["loc"])
                near = get_close_matches(str(problem["loc"][-1]), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                lines.append(f"{where}: unknown key {path!r}; {hint}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                given = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
                if "://" in given:  # as above
                    given = ""
                lines.append(f"{where}: {path + ': ' if path else ''}{message}{given}")
        raise InputError("\n".join(lines)) from None
