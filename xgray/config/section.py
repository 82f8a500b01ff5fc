"""The base of all sections of the experiment file, and how a section is validated."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from xgray.errors import InputError
from xgray.languages import language

Switch = Literal["corrected", "released"]
SHOWN = 80
"""Characters of a value that a message shows."""

Dtype = Literal["float32", "bfloat16", "float16"]
"""The precision of a model's weights and arithmetic."""


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

    added_later: ClassVar[tuple[str, ...]] = ()
    """Fields that older runs lack. They are left out of the payload where they have their default, so that fingerprints
    stay what they are."""

    @field_validator("*", mode="before")
    @classmethod
    def _number_is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``k: true``, which Pydantic would take for 1."""
        values = value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) for item in values):
            kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise ValueError(f"a number is expected, not {str(value).lower()}")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the plain types in an annotation: of ``list[int] | None`` they are ``int`` and ``NoneType``."""
    return set().union(*map(_kinds, get_args(annotation))) if get_args(annotation) else {annotation}


def language_codes(codes: list[str]) -> list[str]:
    """Return the codes of a field of languages in their usual spelling.

    Raises:
        ValueError: there is none, one is unknown, or one is listed twice.
    """
    if not codes:
        raise ValueError("at least one language is needed")
    try:
        known = [language(code).code for code in codes]
    except InputError as error:
        raise ValueError(str(error)) from None
    if len(set(known)) < len(known):
        raise ValueError(f"a language is listed twice: {' '.join(known)}")
    return known


class Model(Section):
    """A model to load."""

    id: str
    """A Hugging Face model id, a local folder, a GGUF file, or ``pkg://package/file.gguf`` for a GGUF file in a Python
    package."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    dtype: Dtype = "float32"
    """The precision in which the model runs. Training has ``train.dtype``, and the sections that look inside the
    network have a ``dtype`` of their own."""


class ModelWorkers(Section):
    """The workers of a stage, each with a copy of a model."""

    num_workers: int | None = Field(None, ge=1, le=100_000)
    """Number of copies of the model; by default one per GPU, or one per machine without a GPU. Where the cluster can
    never hold as many, there are fewer."""


class MeasuringExecution(ModelWorkers):
    """How a stage is run that passes texts through a model."""

    batch_size: int = Field(32, ge=1)
    """Texts in one forward pass."""


def shorten(value: Any) -> str:
    """Return a value for a message, without what is too long for a line."""
    text = value[: SHOWN + 1] if isinstance(value, str) else value
    shown = repr(text)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden by ``changes``, section by section. Neither is modified.

    Where ``score`` is a list of scorers, single fields change the first one.

    Raises:
        InputError: the changes name another scorer where there is a list of them.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if key == "score" and isinstance(old, list) and isinstance(value, dict):
            merged[key] = _change_first(old, value)
        else:
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _change_first(scorers: list[Any], changes: dict[str, Any]) -> list[Any]:
    """Return a list of ``score`` sections with changes of the first one; a list of anything else as it is."""
    if "scorer" in changes:
        names = [section.get("scorer", "embedding") if isinstance(section, dict) else section for section in scorers]
        listed = ", ".join(map(str, names))
        raise InputError(
            f"score.scorer: {changes['scorer']} in the place of one of several scorers ({listed}): which one is "
            "not said. Name all that are to score, --score NAME --score NAME, or that one alone: "
            f"--score '[{{scorer: {changes['scorer']}}}]'"
        )
    if not scorers or not isinstance(scorers[0], dict):
        return scorers
    return [merge(scorers[0], changes), *scorers[1:]]


def fields_at(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the names of all fields of the section that holds ``location``, a path of keys and list indices."""
    current: type[BaseModel] = section
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = current.model_fields[key].annotation if key in current.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        nested = [
            candidate for candidate in candidates if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ]
        if not nested:
            return []
        current = nested[0]
    return list(current.model_fields)


OTHER_SCORES = "other_scores"
"""The field of the experiment that holds all scorers of the list ``score`` but the first."""


def _place_in_file(location: tuple[Any, ...], values: dict[str, Any]) -> tuple[Any, ...]:
    """Return where a wrong value stands in the file, in which several scorers are one list."""
    if location[:1] == (OTHER_SCORES,) and len(location) > 1:
        return ("score", location[1] + 1, *location[2:])
    if location[:1] == ("score",) and isinstance(values.get("score"), list):
        return ("score", 0, *location[1:])
    return location


def validate(section: type[Any], values: dict[str, Any], where: str, prefix: str = "") -> Any:
    """Build a section from ``values``.

    Args:
        section: the section's model.
        values: its fields, as YAML holds them.
        where: the file or option that they come from, for the error's message.
        prefix: what stands before the names of the fields in the message, such as ``serve.``.

    Raises:
        InputError: a field is wrong; the message has one line per field, with the nearest known key for an unknown one.
    """
    try:
        return section.model_validate(values)
    except InputError as error:  # from a variant's train section, whose message names the variant
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = _place_in_file(problem["loc"], values)
            path = (prefix + ".".join(str(part)[:SHOWN] for part in place)).removesuffix(".")
            if problem["type"] == "extra_forbidden":
                known = fields_at(section, problem["loc"])
                near = get_close_matches(str(problem["loc"][-1]), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                lines.append(f"{where}: unknown key {path!r}; {hint}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                given = "" if problem["type"] in ("missing", "value_error") else f" (got {shorten(problem['input'])})"
                if "://" in given:  # an address may hold a password
                    given = ""
                lines.append(f"{where}: {path + ': ' if path else ''}{message}{given}")
        raise InputError("\n".join(lines)) from None
