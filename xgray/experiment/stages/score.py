"""Stage ``score/{model}``: the scores of a model's completions, ``score/{model}/rows``.

It runs in one stream with ``generate``: :mod:`xgray.experiment.stages.sample`.
"""

from __future__ import annotations

from typing import Any

from xgray.experiment.plan import Plan
from xgray.runs.manifest import section_payload


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what a model's scores depend on: its completions, the scorer's files and the section."""
    from xgray.score.build import scorer_inputs

    section = plan.experiment.score
    completions = plan.stage("generate", model).fingerprint
    return {"inputs": {"completions": completions, **scorer_inputs(section)}, "section": section_payload(section)}
