"""The report's sections of the stages that look inside the network, a module and a template for each.

Each module has ``make(files, experiment)``, which returns its section, or None where the run has no results of the
stage. The table of stages (:mod:`xgray.config.stages`) names the module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xgray.report.figures import Drawing


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    key: str
    """Its anchor in the page, and its template: ``sections/{key}.html``."""
    title: str
    context: dict[str, Any] = field(default_factory=dict)
    """The values that the template shows, as ``section.context``."""
    figures: dict[str, Drawing] = field(default_factory=dict)
    """By file name. The template shows each with ``drawing(name)``."""
    reason: str = ""
    """Why there is nothing to show; the page then has this sentence instead of the template."""
