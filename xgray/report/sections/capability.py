"""The section about capability: tasks of lm-evaluation-harness before and after tuning (the paper's Table 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xgray.config import BASE, Experiment
from xgray.config.stages import model_names
from xgray.report.figures import INK, MUTED, Drawing, legend, model_looks, new_figure
from xgray.report.files import RunFiles
from xgray.report.metrics import MISSING, Metric, number, p_value
from xgray.report.published import TABLE_3
from xgray.report.sections import Section
from xgray.report.summary import Verdict, verdict
from xgray.report.tables import Cell, Table, count_cell, value_cell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

    from xgray.evaluate.metrics_file import CapabilityMetrics, TaskChange

    ModelCapability = dict[str, CapabilityMetrics]
    """``capability/{model}/metrics.json`` of each model, the base model first."""

TITLE = "Capability on other tasks"
VALUE = Metric("Value", digits=4)
VERDICTS = {"better": "▲ better", "worse": "▼ worse", "unchanged": "not significant", "untested": "not tested"}
NORMALISED = "acc_norm"
"""Accuracy by log-likelihood divided by the answer's length: the main metric of a task that has it."""


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no capability of the base model."""
    by_model = {model: files.stage_metrics(f"capability/{model}") for model in model_names(experiment)}
    capability: ModelCapability = {model: metrics for model, metrics in by_model.items() if metrics is not None}
    if BASE not in capability:
        return None
    if reason := files.stale_reason(*(f"capability/{model}" for model in capability)):
        return Section("capability", TITLE, reason=reason)
    tasks = capability[BASE]["tasks"]
    # A group without values of its own has no row: its tasks then stand for themselves.
    main = [task for task, results in tasks.items() if results["group"] not in tasks]
    in_groups = [task for task in tasks if task not in main]
    variants = [model for model in capability if model != BASE]
    published = TABLE_3.get(experiment.model.id, {})
    changes = [
        change
        for variant in variants
        for metrics in capability[variant]["comparison"].values()
        for change in metrics.values()
    ]
    context = {
        "answers": [_answer(capability, variant, main) for variant in variants],
        "harness": ", ".join(dict.fromkeys(metrics["harness"] for metrics in capability.values())),
        "confidence": capability[BASE]["confidence"],
        "num_questions": sum(tasks[task]["num_questions"] for task in main),
        "num_tasks": len(main),
        "limit": experiment.capability.limit if experiment.capability else None,
        "num_unpaired": sum(not change["paired"] for change in changes),
        "num_changes": len(changes),
        "table": _table(capability, main, published),
        "group_table": _table(capability, in_groups, {}) if in_groups else None,
        "is_published": any(task in main for task in published),
    }
    figures = {}
    if variants:
        description = f"Change of each task from {BASE} to {' and '.join(variants)}, with intervals."
        figures["capability"] = Drawing(_figure(capability, main), description)
    return Section("capability", TITLE, context, figures)


def _main_metric(metrics: Iterable[str]) -> str:
    names = list(metrics)
    return NORMALISED if NORMALISED in names else names[0]


def _change(capability: ModelCapability, model: str, task: str, metric: str) -> TaskChange | None:
    """Return the change of a task's metric; None where one of the two models has no value."""
    return capability[model]["comparison"].get(task, {}).get(metric)


def _verdict(capability: ModelCapability, model: str, task: str, metric: str) -> Verdict:
    higher_is_better = capability[BASE]["tasks"][task]["metrics"][metric]["higher_is_better"] is not False
    return verdict(_change(capability, model, task, metric), lower_is_better=not higher_is_better)


def _answer(capability: ModelCapability, variant: str, tasks: list[str]) -> str:
    metrics = {task: _main_metric(capability[BASE]["tasks"][task]["metrics"]) for task in tasks}
    verdicts = [_verdict(capability, variant, task, metric) for task, metric in metrics.items()]
    return (
        f"{variant}: of {len(tasks)} task{'s' if len(tasks) > 1 else ''}, {verdicts.count('better')} became "
        f"significantly better and {verdicts.count('worse')} significantly worse."
    )


def _figure(capability: ModelCapability, tasks: list[str]) -> Figure:
    """Draw the change of each task's main metric with its interval, a point for each variant."""
    variants = [model for model in capability if model != BASE]
    looks = model_looks(variants, variants)
    figure, axes = new_figure(0.9 + 0.34 * len(tasks), 1)
    axes.axvline(0, color=MUTED, linewidth=1)
    labels = []
    for row, task in enumerate(tasks):
        metric = _main_metric(capability[BASE]["tasks"][task]["metrics"])
        labels.append(f"{task} ({metric})")
        for index, variant in enumerate(variants):
            change = _change(capability, variant, task, metric)
            y = row + 0.22 * (index - (len(variants) - 1) / 2)
            if change is None:
                axes.text(0, y, " no value", va="center", fontsize=7, color=MUTED)
                continue
            if change["low"] is not None:
                axes.plot([change["low"], change["high"]], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
            axes.scatter([change["difference"]], [y], s=34, linewidth=0, zorder=3, **looks[variant])
    axes.set_yticks(range(len(tasks)), labels)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlabel(f"change from {BASE}")
    legend(figure, looks)
    return figure


def _table(capability: ModelCapability, tasks: list[str], published: dict[str, tuple[float, float]]) -> Table:
    variants: list[str | None] = [model for model in capability if model != BASE] or [None]
    names_variant, is_compared = len(variants) > 1, variants != [None]
    columns = ["Task", "Metric", *(["Variant"] if names_variant else [])]
    columns += ["Before", "After", "Difference", "p adjusted", "Verdict"] if is_compared else ["Value"]
    columns += ["Paper, before", "Paper, after"] if published else []
    table = Table("Tasks of the harness", "", [*columns, "Questions", "Few-shot examples"])
    for task in tasks:
        results = capability[BASE]["tasks"][task]
        for metric in results["metrics"]:
            for variant in variants:
                row = [Cell(task, sort=task, note=f"version {results['version']}"), Cell(metric, sort=metric)]
                row += [Cell(variant, sort=variant)] if variant and names_variant else []
                models = [model for model in (BASE, variant) if model]
                row += [_value_cell(capability, model, task, metric) for model in models]
                row += _change_cells(capability, variant, task, metric) if variant else []
                if published:
                    is_main = metric == _main_metric(results["metrics"])
                    values = published.get(task, (None, None)) if is_main else (None, None)
                    row += [Cell(number(value, 4), sort=value) for value in values]
                row += [count_cell(results["num_questions"])]
                table.rows.append([*row, Cell(str(results["num_fewshot"]), sort=results["num_fewshot"])])
    return table


def _value_cell(capability: ModelCapability, model: str, task: str, metric: str) -> Cell:
    measured = capability[model]["tasks"][task]["metrics"].get(metric)
    if measured is None:
        return Cell(MISSING, reason="the harness gave no value")
    return replace(value_cell(VALUE, measured), note=f"standard error {VALUE.text(measured['stderr'])}")


def _change_cells(capability: ModelCapability, variant: str, task: str, metric: str) -> list[Cell]:
    change, found = _change(capability, variant, task, metric), _verdict(capability, variant, task, metric)
    verdict_cell = Cell(VERDICTS[found], sort=found, tone=found)
    if change is None:
        missing = Cell(MISSING, reason="one of the two values could not be computed")
        return [missing, missing, verdict_cell]
    return [
        Cell(
            VALUE.text(change["difference"], signed=True),
            VALUE.interval(change["low"], change["high"], signed=True),
            change["difference"],
            note="paired by question" if change["paired"] else "unpaired",
        ),
        Cell(
            p_value(change["p_adjusted"]),
            sort=change["p_adjusted"],
            note=f"unadjusted p {p_value(change['p_value'])}",
        ),
        verdict_cell,
    ]
