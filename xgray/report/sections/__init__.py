"""The report's sections about the inside of the network, one file and one template each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    key: str
    """Its anchor in the page, and its template: ``sections/{key}.html``."""
    title: str
    context: dict[str, Any] = field(default_factory=dict)
    """What the template is given, as ``section``."""
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    """By file name, each with a description for who does not see it; a template draws one with ``drawing(name)``."""
    reason: str = ""
    """Why there is nothing to show; it then stands in the place of the template."""
