"""The ``sweep`` section: lists of values, each combination of which every variant is trained with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

from pydantic import Field, field_validator

from xgray.config.section import Section
from xgray.config.train import Loss, Variant


@dataclass(frozen=True)
class SweepPoint:
    """One combination of the values of a sweep, and the variant of the file that it changes."""

    variant: str
    """The variant's name in the file: the seeds of a mean are the points that differ in nothing else."""
    values: dict[str, Any]
    """The fields of the ``train`` section that the sweep sets, in the order of the variant's name."""


class Sweep(Section):
    """Trainings that differ in some fields: every variant that is trained is trained with each combination of these
    values, as a variant of its own such as ``dpo-lr1e-05-seed1``. Checkpoints stay as they are."""

    learning_rate: list[Annotated[float, Field(gt=0)]] | None = None
    """Values of ``train.learning_rate``."""
    beta: list[Annotated[float, Field(gt=0)]] | None = None
    """Values of ``train.beta``."""
    loss: list[Loss] | None = None
    """Values of ``train.loss``."""
    languages: list[str | list[str]] | None = None
    """Values of ``train.languages``, the languages of the pairs; each is a code or a list of codes."""
    seed: list[int] | None = None
    """Values of ``train.seed``."""

    @field_validator("*")
    @classmethod
    def _several_different(cls, values: list[Any] | None) -> list[Any] | None:
        if values is None:
            return None
        if len(values) < 2:
            raise ValueError(f"a sweep needs two values or more, not {len(values)}; a single one belongs into train")
        texts = [_text(value) for value in values]
        if repeated := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"{repeated} is listed twice; leave one of them out")
        return values

    def points(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each combination of the values: its part of the variant's name, and the fields of ``train``.

        The combinations that differ in the seed alone follow each other.
        """
        fields = [name for name in type(self).model_fields if getattr(self, name) is not None]
        for values in product(*(getattr(self, name) for name in fields)):
            changes = dict(zip(fields, values, strict=True))
            short = "-".join(f"{_PREFIXES[name]}{_text(value)}" for name, value in changes.items())
            if isinstance(changes.get("languages"), str):
                changes["languages"] = [changes["languages"]]
            yield short, changes

    def expand(self, variants: Sequence[Variant]) -> list[Variant]:
        """Return the variants, each that is trained replaced by its points.

        Raises:
            ValueError: a variant sets a field that the sweep sets.
        """
        points = list(self.points())
        return [point for variant in variants for point in _at_points(variant, points)]

    def source(self, variant: Variant) -> tuple[Variant, dict[str, Any]]:
        """Return the variant of the file that :meth:`expand` made this one from, and the fields that it set.

        A checkpoint is its own source, and nothing is set in it.
        """
        for short, changes in self.points() if variant.checkpoint is None else ():
            if variant.name.endswith(f"-{short}"):
                train = {name: value for name, value in variant.train.items() if name not in changes}
                name = variant.name.removesuffix(f"-{short}")
                return variant.model_copy(update={"name": name, "train": train}), changes
        return variant, {}


_PREFIXES = {"learning_rate": "lr", "beta": "beta", "loss": "", "languages": "from-", "seed": "seed"}
"""What stands before a value in a variant's name."""


def _text(value: Any) -> str:
    """Return a value as it stands in a variant's name: ``1e-05``, ``ipo``, ``de.en`` for two languages."""
    text = ".".join(sorted(value)) if isinstance(value, list) else repr(value) if isinstance(value, float) else value
    return re.sub("[^a-z0-9._-]", "", str(text).lower())


def _at_points(variant: Variant, points: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Variant]:
    if variant.checkpoint is not None or points == [("", {})]:
        yield variant
        return
    for name in points[0][1]:
        if name in variant.train:
            raise ValueError(f"variants.{variant.name}.train.{name}: sweep.{name} sets it too; leave one of them out")
    for short, changes in points:
        name, train = f"{variant.name}-{short}", {**variant.train, **changes}
        yield variant.model_copy(update={"name": name, "train": train})
