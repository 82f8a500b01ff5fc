"""Stage ``report``: write ``report/index.html`` and its figures from the run's files."""

from __future__ import annotations

from typing import Any

from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageResult, section_payload
from xgray.runs.progress import OnProgress


def payload(plan: Plan, model: str | None) -> dict[str, Any]:
    """Return what the page depends on: the metrics and all stages that have a part of the page."""
    sources = [
        stage
        for stage in plan.stages
        if stage.name == "evaluate" or stage.stage.inside or stage.stage.report_section is not None
    ]
    return {
        "inputs": {stage.label: _fingerprint(plan, stage) for stage in sources},
        "section": section_payload(plan.experiment.report),
    }


def _fingerprint(plan: Plan, stage: PlannedStage) -> str:
    """Return the fingerprint of the results that the page shows: those that are there, if only the version differs."""
    manifest = stage.place.manifest() if plan.is_of_earlier_version(stage) else None
    return manifest["fingerprint"] if manifest else stage.fingerprint


def run(plan: Plan, planned: PlannedStage, on_progress: OnProgress) -> StageResult:
    """Write the report; no cluster is needed.

    Raises:
        InputError: the run was not evaluated.
    """
    from xgray.report.build import build_report

    evaluation = plan.stage("evaluate")
    if not plan.is_of_earlier_version(evaluation):
        evaluation.require()
    on_progress(planned.label, 0, 1)
    result = build_report(plan.run, plan.experiment)
    on_progress(planned.label, 1, 1)
    return result
