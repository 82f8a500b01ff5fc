"""Stage ``report``: write the HTML page and the figures from the run's files."""

from __future__ import annotations

from xgray.experiment.plan import Plan
from xgray.runs.progress import OnProgress


def _report(plan: Plan, on_progress: OnProgress) -> None:
    from xgray.report.build import build_report

    plan.evaluate.require()
    on_progress("report", 0, 1)
    plan.report.place.finish(plan.report.payload, build_report(plan.run, plan.experiment))
    on_progress("report", 1, 1)
