"""What tuning costs elsewhere: the harness's tasks before and after (the paper's Table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment
from xgray.report.figures import INK, MUTED, legend, new_figure, series
from xgray.report.files import RunFiles
from xgray.report.metrics import MISSING, Metric, number, p_value
from xgray.report.sections import Section
from xgray.report.summary import verdict
from xgray.report.tables import Cell, Table, value_cell
from xgray.runs.manifest import MANIFEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Capability on other tasks"
VALUE = Metric("value", "Value", "", digits=4)
VERDICTS = {"better": "▲ better", "worse": "▼ worse", "unchanged": "not significant", "untested": "not tested"}

PUBLISHED_MODEL = "bigscience/bloom-7b1"
PUBLISHED = {
    "arc_vi": (0.3368, 0.3393), "hellaswag_vi": (0.4737, 0.4730), "m_mmlu_vi": (0.2803, 0.2848),
    "arc_ru": (0.2746, 0.2814), "hellaswag_ru": (0.3260, 0.3284), "m_mmlu_ru": (0.2709, 0.2759),
    "arc_hi": (0.2937, 0.2979), "hellaswag_hi": (0.3635, 0.3646), "m_mmlu_hi": (0.2755, 0.2750),
    "arc_zh": (0.3718, 0.3778), "hellaswag_zh": (0.5017, 0.5077), "m_mmlu_zh": (0.2904, 0.2947),
}  # fmt: skip
"""Table 3 of the paper, before and after DPO, by the harness's name of the task."""
NORMED = "acc_norm"
"""Accuracy by log-likelihood for each character of the answer; where a task has it, it is the one to look at."""

Told = dict[str, dict[str, Any]]
"""Each model's ``capability/{model}/metrics.json``, the one before tuning first."""


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no capability of the model before tuning."""
    names = [BASE, *(variant.name for variant in experiment.variants)]
    folders = {name: files.run / "capability" / name for name in names}
    told = {name: one.read_json("metrics.json") for name, one in folders.items() if one.exists(MANIFEST)}
    if BASE not in told:
        return None
    if reason := files.outdated(*(f"capability/{name}" for name in told)):
        return Section("capability", TITLE, reason=reason)
    tasks: dict[str, dict[str, Any]] = told[BASE]["tasks"]
    # A group without values of its own has no row: its tasks stand for themselves.
    whole = [task for task, one in tasks.items() if one["group"] not in tasks]
    parts = [task for task in tasks if task not in whole]
    tuned = [model for model in told if model != BASE]
    paper = PUBLISHED if experiment.model.id == PUBLISHED_MODEL else {}
    compared = [one for model in tuned for each in told[model]["comparison"].values() for one in each.values()]
    section = experiment.capability
    context = {
        "answers": [_answer(told, model, whole) for model in tuned],
        "harness": ", ".join(dict.fromkeys(one["harness"] for one in told.values())),
        "confidence": told[BASE]["confidence"],
        "num_questions": sum(tasks[task]["num_questions"] for task in whole),
        "num_tasks": len(whole),
        "limit": section.limit if section else None,
        "unpaired": sum(not one["paired"] for one in compared),
        "compared": len(compared),
        "table": _table(told, whole, paper),
        "parts": _table(told, parts, {}) if parts else None,
        "paper": [task for task in PUBLISHED if task in whole] if paper else [],
    }
    drawn = {}
    if tuned:
        words = f"Change of each task from {BASE} to {' and '.join(tuned)}, with intervals."
        drawn["capability"] = (_figure(told, whole), words)
    return Section("capability", TITLE, context, drawn)


def _main(metrics: dict[str, Any]) -> str:
    return NORMED if NORMED in metrics else next(iter(metrics))


def _found(told: Told, model: str, task: str, metric: str) -> tuple[dict[str, Any], str]:
    """A change, and what it comes to."""
    change: dict[str, Any] = told[model]["comparison"].get(task, {}).get(metric, {})
    better_up = told[BASE]["tasks"][task]["metrics"][metric]["higher_is_better"] is not False
    return change, verdict(change, lower_is_better=not better_up)


def _answer(told: Told, model: str, tasks: list[str]) -> str:
    metrics = {task: _main(told[BASE]["tasks"][task]["metrics"]) for task in tasks}
    found = [_found(told, model, task, metric)[1] for task, metric in metrics.items()]
    return (
        f"{model}: of {len(tasks)} task{'s' if len(tasks) > 1 else ''}, {found.count('better')} became significantly "
        f"better and {found.count('worse')} significantly worse."
    )


def _figure(told: Told, tasks: list[str]) -> Figure:
    """The change of each task's main metric with its interval, a point for each tuned model."""
    tuned = [model for model in told if model != BASE]
    looks = series(tuned, tuned)
    figure, axes = new_figure(0.9 + 0.34 * len(tasks), 1)
    axes.axvline(0, color=MUTED, linewidth=1)
    labels = []
    for place, task in enumerate(tasks):
        metric = _main(told[BASE]["tasks"][task]["metrics"])
        labels.append(f"{task} ({metric})")
        for at, model in enumerate(tuned):
            change, _ = _found(told, model, task, metric)
            y = place + 0.22 * (at - (len(tuned) - 1) / 2)
            if not change:
                axes.text(0, y, " no value", va="center", fontsize=7, color=MUTED)
                continue
            if change["low"] is not None:
                axes.plot([change["low"], change["high"]], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
            axes.scatter([change["difference"]], [y], s=34, linewidth=0, zorder=3, **looks[model])
    axes.set_yticks(range(len(tasks)), labels)
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_xlabel(f"change from {BASE}")
    legend(figure, looks)
    return figure


def _table(told: Told, tasks: list[str], paper: dict[str, tuple[float, float]]) -> Table:
    tuned: list[str | None] = [model for model in told if model != BASE] or [None]
    several, compared = len(tuned) > 1, tuned != [None]
    columns = ["Task", "Metric", *(["Variant"] if several else []), *(["Before", "After"] if compared else ["Value"])]
    columns += ["Difference", "p adjusted", "Verdict"] if compared else []
    columns += ["Paper, before", "Paper, after"] if paper else []
    table = Table("Tasks of the harness", "", [*columns, "Questions", "Examples"])
    for task in tasks:
        one = told[BASE]["tasks"][task]
        for metric in one["metrics"]:
            for model in tuned:
                row = [Cell(task, sort=task, note=f"version {one['version']}"), Cell(metric, sort=metric)]
                row += [Cell(model, sort=model)] if model and several else []
                row += [_value(told, each, task, metric) for each in (BASE, model) if each]
                row += _change_cells(*_found(told, model, task, metric)) if model else []
                if paper:
                    published = paper.get(task, (None, None)) if metric == _main(one["metrics"]) else (None, None)
                    row += [Cell(number(value, 4), sort=value) for value in published]
                row += [Cell(f"{one['num_questions']:,}", sort=one["num_questions"])]
                table.rows.append([*row, Cell(str(one["num_fewshot"]), sort=one["num_fewshot"])])
    return table


def _value(told: Told, model: str, task: str, metric: str) -> Cell:
    measured = told[model]["tasks"][task]["metrics"].get(metric)
    if measured is None:
        return Cell(MISSING, reason="the harness gave no value")
    cell = value_cell(VALUE, measured)
    return Cell(cell.text, cell.interval, cell.sort, note=f"standard error {VALUE.text(measured['stderr'])}")


def _change_cells(change: dict[str, Any], found: str) -> list[Cell]:
    if not change:
        missing = Cell(MISSING, reason="one of the two could not be computed")
        return [missing, missing, Cell(VERDICTS[found], sort=found, tone=found)]
    interval = VALUE.interval(change["low"], change["high"], signed=True)
    how = "paired by question" if change["paired"] else "unpaired"
    return [
        Cell(VALUE.text(change["difference"], signed=True), interval, change["difference"], note=how),
        Cell(p_value(change["p_adjusted"]), sort=change["p_adjusted"], note=f"unadjusted {p_value(change['p_value'])}"),
        Cell(VERDICTS[found], sort=found, tone=found),
    ]
