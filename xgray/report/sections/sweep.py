"""The section about a sweep: toxicity against perplexity, the means over seeds of all points, and source by target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xgray.config import Experiment
from xgray.evaluate.sweep_file import SOURCES
from xgray.report import summary
from xgray.report.figures import Drawing
from xgray.report.files import best_validation, language_name, median_speed
from xgray.report.metrics import METRICS, MISSING, Metric, number
from xgray.report.points import PointFiles
from xgray.report.sections import Section
from xgray.report.sections.sweep_figure import toxicity_against_perplexity
from xgray.report.summary import verdict
from xgray.report.tables import Cell, Table, count_cell, run_rows, value_cell

if TYPE_CHECKING:
    from xgray.evaluate.metrics_file import MetricName, ModelMetrics
    from xgray.evaluate.sweep_file import PointMetrics, SeedMean
    from xgray.stats.values import MetricChange

KEY, TITLE = "sweep", "Sweep"
SHOWN: tuple[MetricName, ...] = ("emt", "tox_prob", "perplexity", "dist_1", "dist_2")
"""The metrics of the table of points."""
CHANGED: tuple[MetricName, ...] = ("emt", "tox_prob")
"""The metrics with a table of changes by point and language."""
FIELDS = {
    "learning_rate": "learning rate",
    "beta": "beta",
    "loss": "loss",
    SOURCES: "language of the pairs",
    "seed": "seed",
}
"""The fields of a sweep, in words."""
TRAINED_ON = "◆"
"""Marks a language that a point was trained on."""
NUM_SHADES = 4


def make(files: PointFiles, experiment: Experiment) -> Section:
    """Return the section."""
    figure = toxicity_against_perplexity(files)
    description = f"EMT against median perplexity, averaged over languages, for {' and '.join(files.models)}."
    several = len(files.points) > 1
    context = {
        "drawing": figure is not None,
        "points": _point_table(files),
        "changes": [_change_table(files, name) for name in CHANGED] if several and files.variants else [],
        "answers": summary.answers(files) if several else [],
        "trainings": _training_table(files),
        "has_sources": SOURCES in files.sweep["fields"],
        "has_seeds": files.has_seeds,
        "trained_on": TRAINED_ON,
        "confidence": f"{files.metrics['confidence']:.0%}",
        "detail": f"All {len(files.point_of)} trainings",
    }
    return Section(KEY, TITLE, context, {} if figure is None else {KEY: Drawing(figure, description)})


def in_words(files: PointFiles) -> str:
    """Return what the sweep varies: ``learning rate 1e-06, 1e-05; seed 1, 2: 4 trainings``."""
    values: dict[str, list[str]] = {}
    for point in files.points.values():
        for name, value in point["values"].items():
            values.setdefault(name, []).append(_text(value))
        if point["seeds"]:
            values.setdefault("seed", []).extend(map(str, point["seeds"]))
    parts = [f"{FIELDS.get(name, name)} {', '.join(dict.fromkeys(texts))}" for name, texts in values.items()]
    variants = dict.fromkeys(point["variant"] for point in files.points.values())
    of_variants = f" of {' and '.join(variants)}" if len(variants) > 1 else ""
    return f"{'; '.join(parts)}: {len(files.point_of)} trainings{of_variants}"


def _text(value: Any) -> str:
    return " and ".join(map(language_name, value)) if isinstance(value, list) else str(value)


def answers(files: PointFiles) -> list[tuple[str, str]]:
    """Return the result of the sweep in words: the answer of a single point, or the ends of several."""
    compared = {name: point["comparison"]["average"]["emt"] for name, point in files.points.items() if _has_emt(point)}
    if len(files.points) == 1 or not compared:
        return summary.answers(files)
    verdicts = [verdict(change, METRICS["emt"].lower_is_better) for change in compared.values()]
    ordered = sorted(compared, key=lambda name: compared[name]["difference"] or 0.0)
    first, last = ordered[0], ordered[-1]
    worse = f" and rose at {verdicts.count('worse')}" if "worse" in verdicts else ""
    sentence = (
        f"EMT averaged over languages fell significantly at {verdicts.count('better')} of {len(compared)} points of "
        f"the sweep{worse}: most at {_named(first)}, {_change_in_words(compared[first])}; least at {_named(last)}, "
        f"{_change_in_words(compared[last])}."
    )
    return [(sentence, f"{_perplexity_in_words(files, [first, last])}Values are means over the trainings of a point.")]


def _has_emt(point: PointMetrics) -> bool:
    return "comparison" in point and point["comparison"]["average"]["emt"]["difference"] is not None


def _named(name: str) -> str:
    return name.replace(" ", "\u00a0") if len(name) < 20 else name


def _change_in_words(change: MetricChange) -> str:
    emt = METRICS["emt"]
    return f"from {emt.text(change['before']['value'])} to {emt.with_interval(change['after'])}"


def _perplexity_in_words(files: PointFiles, names: Sequence[str]) -> str:
    values = {name: files.points[name]["average"]["perplexity"]["value"] for name in names}
    base = files.metrics["models"][files.models[0]]["average"]["perplexity"]["value"]
    if base is None or None in values.values():
        return ""
    text = METRICS["perplexity"].text
    parts = [f"{text(base)} before", *(f"{text(value)} at {_named(name)}" for name, value in values.items())]
    return f"Median perplexity: {', '.join(parts)}. "


def _point_table(files: PointFiles) -> Table:
    """Return a row for each point: its values, their changes, the trainings' validation loss and speed."""
    models = {name: files.metrics["models"][name] for name in files.models if name not in files.point_of}
    trains = any(files.training.values())
    columns = ["Point", "Seeds", "EMT", *(["Change of EMT"] if files.variants else [])]
    columns += [METRICS[name].title for name in SHOWN if name != "emt"]
    table = Table("Points", "", [*columns, *(["Best validation loss", "Tokens per second"] if trains else [])])
    for order, (name, measured) in enumerate(models.items()):
        point = files.points.get(name)
        row = [Cell(name, sort=order), count_cell(len(point["variants"])) if point else Cell(MISSING)]
        for metric in SHOWN:
            row.append(_mean_cell(METRICS[metric], measured, metric))
            if metric == "emt" and files.variants:
                row.append(_change_cell(METRICS[metric], files, name))
        table.rows.append([*row, *(_training_cells(files, point) if trains else [])])
    return table


def _mean_cell(metric: Metric, measured: ModelMetrics, name: MetricName) -> Cell:
    value: SeedMean | Any = measured["average"][name]
    cell = value_cell(metric, value)
    deviation = value.get("deviation")
    note = f"standard deviation between seeds {metric.text(deviation)}" if deviation is not None else ""
    return replace(cell, note=note)


def _change_cell(metric: Metric, files: PointFiles, name: str) -> Cell:
    comparison = files.metrics["comparisons"].get(name)
    if comparison is None:
        return Cell(MISSING)
    return _marked_change(metric, comparison["average"].get("emt"))


def _marked_change(metric: Metric, change: MetricChange | None) -> Cell:
    """Return a difference, marked where it is significant."""
    if change is None or change["difference"] is None:
        reason = change.get("reason") if change else None
        return Cell(MISSING, reason=reason or "one of the two values could not be computed")
    arrow = (" ▼" if change["difference"] < 0 else " ▲") if change["significant"] else ""
    return Cell(
        metric.text(change["difference"], signed=True) + arrow,
        metric.interval(change["low"], change["high"], signed=True),
        change["difference"],
    )


def _training_cells(files: PointFiles, point: PointMetrics | None) -> list[Cell]:
    """Return the best validation loss and the speed, both averaged over the trainings that have one."""
    records = [files.training.get(name, []) for name in point["variants"]] if point else []
    losses = [best["eval_loss"] for best in map(best_validation, records) if best is not None]
    speeds = [speed for speed in map(median_speed, records) if speed is not None]
    cells = []
    for values, digits in ((losses, 4), (speeds, 0)):
        mean = sum(values) / len(values) if values else None
        cells.append(Cell(number(mean, digits), sort=mean))
    return cells


def _change_table(files: PointFiles, name: MetricName) -> Table:
    """Return the change of a metric with a row for each language and a column for each point, shaded by its size."""
    metric, points = METRICS[name], list(files.points.values())
    unit = f" ({metric.unit})" if metric.unit else ""
    table = Table(f"{metric.name}{unit}", "", ["Language", *(point["name"] for point in points)])
    changes = [
        [_change(point, name, language) for point in points if "comparison" in point]
        for language in (None, *files.languages)
    ]
    sizes = [abs(change["difference"]) for row in changes for change in row if change and change["difference"]]
    for language, row in zip((None, *files.languages), changes, strict=True):
        cells = [_shaded(_marked_change(metric, change), max(sizes, default=0.0)) for change in row]
        for at, point in enumerate(points):
            if language in point["values"].get(SOURCES, ()):
                cells[at] = _with_mark(cells[at])
        title = "Average" if language is None else language_name(language)
        table.rows.append([Cell(title, sort=title), *cells])
    return table


def _change(point: PointMetrics, name: MetricName, language: str | None) -> MetricChange | None:
    changes = point["comparison"]
    return changes["average"].get(name) if language is None else changes["languages"].get(language, {}).get(name)


def _shaded(cell: Cell, largest: float) -> Cell:
    """Return the cell with the shade of its size: ``fall-1`` to ``fall-4``, ``rise-1`` to ``rise-4``, none for 0."""
    if not isinstance(cell.sort, float) or not cell.sort:
        return cell
    shade = min(NUM_SHADES, 1 + int(NUM_SHADES * abs(cell.sort) / largest))
    return replace(cell, tone=f"{'fall' if cell.sort < 0 else 'rise'}-{shade}")


def _with_mark(cell: Cell) -> Cell:
    return replace(cell, text=f"{TRAINED_ON} {cell.text}", note="trained on this language")


def _training_table(files: PointFiles) -> Table:
    """Return a row for each training by itself, whose intervals are over prompts alone."""
    columns = ["Training", "Seed", *(metric.title for metric in METRICS.values())]
    table = Table("Trainings", "", [*columns, "Best validation loss", "Tokens per second"])
    seeds = {
        training: seed
        for point in files.points.values()
        for training, seed in zip(point["variants"], point["seeds"], strict=False)
    }
    trained = dict(run_rows(files.trainings))
    for order, name in enumerate(files.point_of):
        records = files.training.get(name, [])
        best = best_validation(records)
        loss, speed = (None if best is None else best["eval_loss"]), median_speed(records)
        row = [Cell(name, sort=order), Cell(str(seeds.get(name, MISSING)), sort=seeds.get(name)), *trained[name]]
        table.rows.append([*row, Cell(number(loss, 4), sort=loss), Cell(number(speed, 0), sort=speed)])
    return table
