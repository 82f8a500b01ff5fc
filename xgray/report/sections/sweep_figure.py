"""The figure of toxicity against perplexity along a sweep (the paper's Figure 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from xgray.evaluate.sweep_file import part_of_name
from xgray.report.figures import BASE_COLOR, INK, MUTED, VARIANT_COLORS, new_figure
from xgray.report.metrics import METRICS
from xgray.report.points import PointFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xgray.evaluate.sweep_file import PointMetrics, SeedMean

ORDERED = ("learning_rate", "beta")
"""The fields along which points are joined by a line."""
MARKERS = ("o", "s", "D", "^", "v", "P")
X: Final = "perplexity"
Y: Final = "emt"
FONT_SIZE = 8.5
NEAR = 7
"""Labels that stand farther to the side have a line to their point."""
AROUND = ((7, 5), (-7, 5), (7, -12), (-7, -12), (0, 11), (0, -18), (22, 14), (-22, 14), (22, -22), (-22, -22))
"""Where a label may stand, from its point, in points of type; the first that is free is taken."""


Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points of type."""


@dataclass(frozen=True)
class Label:
    """The label of a point."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Trace:
    """The points that differ in one field alone, in its order; a line joins them."""

    label: str
    points: list[tuple[str, PointMetrics]]
    """Each with its label."""


def toxicity_against_perplexity(files: PointFiles) -> Figure | None:
    """Draw EMT against the median perplexity, both averaged over languages and seeds, with intervals and the seeds.

    None where no point has both.
    """
    measured = [point for point in files.points.values() if _value(point, X) and _value(point, Y)]
    if not measured:
        return None
    figure, axes = new_figure(4.2, 1)
    axes.grid(axis="both")
    labels: list[Label] = []
    base = files.metrics["models"][files.models[0]]
    if files.models[0] not in files.points and base["average"][X]["value"] is not None:
        labels += _draw(axes, [(files.models[0], cast("PointMetrics", base))], BASE_COLOR, "X")
    traces = _traces(measured, files.sweep["fields"])
    for at, trace in enumerate(traces):
        color = VARIANT_COLORS[at % len(VARIANT_COLORS)]
        marker = MARKERS[at // len(VARIANT_COLORS) % len(MARKERS)]
        axes.plot([], [], color=color, marker=marker, markersize=6, linewidth=1.2, label=trace.label)
        if len(trace.points) > 1:
            places = [(_value(point, X), _value(point, Y)) for _, point in trace.points]
            axes.plot(*zip(*places, strict=True), color=color, linewidth=1.2, alpha=0.7)
        labels += _draw(axes, trace.points, color, marker)
    axes.set_xlabel("median perplexity, average over languages")
    axes.set_ylabel(f"{METRICS[Y].name}, average over languages")
    axes.margins(0.12)
    if len(traces) > 1 and any(len(trace.points) > 1 for trace in traces):
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
    _write_labels(figure, axes, labels)
    return figure


def _value(point: PointMetrics, name: Any) -> float | None:
    value: float | None = cast("Any", point["average"])[name]["value"]
    return value


def _traces(points: Sequence[PointMetrics], fields: Sequence[str]) -> list[Trace]:
    """Return the points in lines along the first field that has an order; each point by itself where none has."""
    along = next((name for name in ORDERED if name in fields), None)
    if along is None:
        return [Trace(point["name"], [(point["name"], point)]) for point in points]

    traces: dict[str, Trace] = {}
    for point in sorted(points, key=lambda point: point["values"].get(along, 0.0)):
        part = part_of_name(along, point["values"].get(along))
        others = ", ".join(each for each in point["name"].split(", ") if each != part) or point["variant"]
        traces.setdefault(others, Trace(others, [])).points.append((part, point))
    return list(traces.values())


def _draw(axes: Axes, points: Sequence[tuple[str, PointMetrics]], color: str, marker: str) -> list[Label]:
    """Draw points with their intervals, and the trainings as small dots. Return the labels to write."""
    labels = []
    for text, point in points:
        x, y = (cast("SeedMean", cast("Any", point["average"])[name]) for name in (X, Y))
        if x["low"] is not None:
            axes.plot([x["low"], x["high"]], [y["value"]] * 2, color=color, linewidth=1, alpha=0.6)
        if y["low"] is not None:
            axes.plot([x["value"]] * 2, [y["low"], y["high"]], color=color, linewidth=1, alpha=0.6)
        if len(x.get("by_seed", [])) > 1 and len(x["by_seed"]) == len(y["by_seed"]):
            axes.plot(x["by_seed"], y["by_seed"], color=color, marker="o", markersize=2.4, linewidth=0, alpha=0.7)
        axes.plot([x["value"]], [y["value"]], color=color, marker=marker, markersize=7, linewidth=0)
        labels.append(Label(text, x["value"] or 0.0, y["value"] or 0.0))
    return labels


def _write_labels(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Write each label beside its point, where it covers no other point and no other label if there is such a place."""
    figure.draw_without_rendering()  # gives the axes their size
    to_points = 72 / figure.dpi
    places = [axes.transData.transform((label.x, label.y)) * to_points for label in labels]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    low, high = (corner * to_points for corner in axes.transAxes.transform([(0, 0), (1, 1)]))
    for label, (x, y) in zip(labels, places, strict=True):
        boxes = {offset: _box(label.text, x + offset[0], y + offset[1], _side(offset)) for offset in AROUND}
        costs = {
            offset: sum(_overlap(box, other) for other in taken)
            + 1000 * (box[0] < low[0] or box[2] > high[0] or box[1] < low[1] or box[3] > high[1])
            for offset, box in boxes.items()
        }
        best = min(AROUND, key=costs.__getitem__)
        taken.append(boxes[best])
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6}
        axes.annotate(
            label.text,
            (label.x, label.y),
            best,
            textcoords="offset points",
            ha=_side(best),
            fontsize=FONT_SIZE,
            color=INK,
            arrowprops=line if abs(best[0]) > NEAR else None,
        )


def _side(offset: tuple[int, int]) -> Literal["left", "center", "right"]:
    """Return which end of a label stands at an offset from its point."""
    return "right" if offset[0] < 0 else "left" if offset[0] else "center"


def _box(text: str, x: float, y: float, side: str) -> Box:
    """Return about the place of a label that is written at a point."""
    width = 0.56 * FONT_SIZE * len(text)
    left = x - {"left": 0.0, "center": 0.5, "right": 1.0}[side] * width
    return left, y - 2, left + width, y + FONT_SIZE


def _overlap(first: Box, second: Box) -> float:
    """Return the area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
