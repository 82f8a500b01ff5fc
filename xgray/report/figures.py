"""The report's figures: drawn once with matplotlib, written as SVG and PDF, and embedded in the page as SVG.

Labels are English names, so that no figure needs a font for another script. The same run gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from markupsafe import Markup

from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from xgray.evaluate.metrics_file import MetricName, SampleMetrics
    from xgray.evaluate.sweep_file import SeedMean
    from xgray.stats.values import MetricChange, MetricValue

    Values = Mapping[str, Mapping[str | None, MetricValue]]
    """Values by model and language; None stands for the average over languages."""
    Changes = Mapping[str, Mapping[str | None, MetricChange | None]]
    """Changes by variant and language; None stands for the average over languages."""

INK, MUTED, GRID = "#1f2329", "#66707c", "#d9dee4"
BASE_COLOR = "#8d97a3"
VARIANT_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette, which readers with any colour vision can tell apart; the base model is grey."""
MAX_MODELS = 1 + len(VARIANT_COLORS)
"""A figure by language shows at most this many models; of more it shows the averages over languages."""
HATCHES = ("", "///", "...", "xxx")
"""Distinguish variants of the same colour, when there are more variants than colours."""

THEME = {INK: "--ink", MUTED: "--muted", GRID: "--line", BASE_COLOR: "--series-0"} | {
    color: f"--series-{at}" for at, color in enumerate(VARIANT_COLORS, start=1)
}
"""The page's CSS variable for each colour of the figures, so that they follow the reader's light or dark setting."""

STYLE: dict[str, Any] = {
    "svg.hashsalt": "xgray",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.left": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "hatch.linewidth": 0.6,
}
WIDTH = 6.2
"""Of every figure, in inches."""


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the figures' style, and leave the caller's matplotlib settings as they were."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        yield


class Drawing(NamedTuple):
    """A figure, and its description for readers who do not see it."""

    figure: Figure
    description: str


Look = dict[str, str]
"""Colour and hatching of a model, as matplotlib's keyword arguments."""


def new_figure(height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    """Return an empty figure and its axes. ``height`` is in inches; the rest goes to ``Figure.subplots``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(*shape, **options)


def model_looks(models: Sequence[str], variants: Sequence[str]) -> dict[str, Look]:
    """Return the look of each model: grey for those that are no variants, a colour for each variant."""
    looks = {model: {"facecolor": BASE_COLOR, "hatch": ""} for model in models if model not in variants}
    for index, variant in enumerate(variants):
        hatch = HATCHES[index // len(VARIANT_COLORS) % len(HATCHES)]
        looks[variant] = {"facecolor": VARIANT_COLORS[index % len(VARIANT_COLORS)], "hatch": hatch}
    return looks


def legend(figure: Figure, looks: dict[str, Look]) -> None:
    """Add a legend above the axes, with an entry for each look."""
    from matplotlib.patches import Patch

    handles = [Patch(label=label, edgecolor="white", linewidth=0, **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), handlelength=1.2)


def language_axis(axes: Axes, languages: Sequence[str]) -> list[float]:
    """Label the y axis with "Average" and, below a line, the languages. Return the positions of all labels."""
    positions = [0.0, *(row + 1.35 for row in range(len(languages)))]
    axes.set_yticks(positions, ["Average", *(language_name(language) for language in languages)])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.axhline(0.675, color=GRID, linewidth=1)
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    return positions


def bars(files: RunFiles, name: MetricName) -> Figure:
    """Draw a metric's bars with intervals: the average, then the languages by their change (the paper's Figure 1)."""
    groups: list[str | None] = [None, *files.languages]
    values = {model: {group: _sample_metrics(files, model, group)[name] for group in groups} for model in files.models}
    changes = {variant: {group: _change(files, name, variant, group) for group in groups} for variant in files.variants}
    draw = average_bars if is_crowded(files) else interval_bars
    return draw(METRICS[name], values, changes)


def is_crowded(files: RunFiles) -> bool:
    """Whether a sweep has too many points for a figure by language."""
    return len(files.models) > MAX_MODELS and "sweep" in files.metrics


def interval_bars(metric: Metric, values: Values, changes: Changes) -> Figure:
    """Draw bars with intervals of every model: the average, then the languages by the change of the first variant.

    Dots are the values of single trainings, where the value is a mean over several.
    """
    models = list(values)
    looks = model_looks(models, list(changes))
    languages = [group for group in values[models[0]] if group is not None]
    languages.sort(key=lambda language: _sort_key(values, changes, language))
    groups: list[str | None] = [None, *languages]
    thickness = 0.8 / len(models)
    figure, axes = new_figure(0.9 + len(groups) * max(0.34, 0.12 * len(models) + 0.1), 1)
    farthest = 0.0
    for position, language in zip(language_axis(axes, languages), groups, strict=True):
        for index, model in enumerate(models):
            y = position - 0.4 + (index + 0.5) * thickness
            measured = values[model][language]
            if measured["value"] is None:
                axes.text(0, y, " no value", va="center", fontsize=7, color=MUTED)
                continue
            axes.barh(
                y,
                measured["value"] * metric.scale,
                height=thickness * 0.92,
                edgecolor="white",
                linewidth=0,
                **looks[model],
            )
            end = max(_draw_interval(axes, metric, measured, y), _draw_seeds(axes, metric, measured, y))
            farthest = max(farthest, end)
            sign = _sign(changes[model][language] if model in changes else None)
            axes.annotate(sign, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_xlim(0, farthest * 1.06 or 1)
    axes.set_xlabel(metric.title)
    legend(figure, looks)
    return figure


def _draw_interval(axes: Axes, metric: Metric, measured: MetricValue, y: float) -> float:
    """Draw the interval of a bar, where there is one. Return the right end of bar and interval."""
    value, low, high = (
        None if end is None else end * metric.scale for end in (measured["value"], measured["low"], measured["high"])
    )
    assert value is not None
    if low is None or high is None:
        return value
    axes.plot([low, high], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
    return max(value, high)


def _draw_seeds(axes: Axes, metric: Metric, measured: MetricValue, y: float) -> float:
    """Draw a dot for each training that a value is the mean of. Return the right end of the dots."""
    by_seed = [value * metric.scale for value in cast("SeedMean", measured).get("by_seed", [])]
    if len(by_seed) < 2:
        return 0.0
    axes.plot(by_seed, [y] * len(by_seed), color=INK, linewidth=0, marker="o", markersize=2.4, fillstyle="none")
    return max(by_seed)


def average_bars(metric: Metric, values: Values, changes: Changes) -> Figure:
    """Draw a bar with its interval for each model's average over languages, labelled with the model's name."""
    models = list(values)
    figure, axes = new_figure(0.7 + 0.26 * len(models), 1)
    farthest = 0.0
    for y, model in enumerate(models):
        measured = values[model][None]
        if measured["value"] is None:
            axes.text(0, y, " no value", va="center", fontsize=7, color=MUTED)
            continue
        color = VARIANT_COLORS[0] if model in changes else BASE_COLOR
        axes.barh(y, measured["value"] * metric.scale, height=0.7, color=color, linewidth=0)
        end = max(_draw_interval(axes, metric, measured, y), _draw_seeds(axes, metric, measured, y))
        farthest = max(farthest, end)
        sign = _sign(changes[model][None] if model in changes else None)
        axes.annotate(sign, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(models)), models, fontsize=9)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, farthest * 1.06 or 1)
    axes.set_xlabel(f"{metric.title}, average over languages")
    return figure


def _sample_metrics(files: RunFiles, model: str, language: str | None) -> SampleMetrics:
    """Return a model's metrics in a language; its averages for None."""
    metrics = files.metrics["models"][model]
    return metrics["average"] if language is None else metrics["languages"][language]


def _change(files: RunFiles, name: MetricName, variant: str, language: str | None) -> MetricChange | None:
    """Return a variant's change of a metric in a language, or of the average for None."""
    comparison = files.metrics["comparisons"][variant]
    changes = comparison["average"] if language is None else comparison["languages"].get(language, {})
    return changes.get(name)


def _sort_key(values: Values, changes: Changes, language: str) -> float:
    """Return the first variant's change of a metric, or the negative value if there is no variant; None goes last."""
    for by_language in changes.values():
        change = by_language[language]
        return math.inf if change is None or change["difference"] is None else change["difference"]
    value = next(iter(values.values()))[language]["value"]
    return math.inf if value is None else -value


def _sign(change: MetricChange | None) -> str:
    """Return a mark for a significant fall or rise."""
    if change is None or not change["significant"] or change["difference"] is None:
        return ""
    return "▼" if change["difference"] < 0 else "▲"


def perplexity_ridges(files: RunFiles) -> Figure | None:
    """Draw each language's and model's density of perplexity, with a tick at the median (the paper's Figure 10)."""
    import numpy as np

    perplexities = files.perplexities()
    if not perplexities:
        return None
    if is_crowded(files):
        return bars(files, "perplexity")
    models = files.models
    looks = model_looks(models, files.variants)
    languages = [language for language in files.languages if any((language, model) in perplexities for model in models)]
    logs = {key: np.log10(np.maximum(values, 1.0)) for key, values in perplexities.items()}
    low, high = np.quantile(np.concatenate(list(logs.values())), [0.002, 0.998])
    grid = np.linspace(low - 0.1, high + 0.1, 161)
    curves = {key: density(values, grid) for key, values in logs.items()}
    highest = max(float(curve.max()) for curve in curves.values())
    figure, axes = new_figure(1.1 + 0.4 * len(languages), 1)
    for row, language in enumerate(languages):
        axes.axhline(row, color=GRID, linewidth=0.8)
        for model in models:
            if (language, model) not in curves:
                continue
            color = looks[model]["facecolor"]
            curve = row - 0.92 * curves[language, model] / highest
            if len(models) <= 2 or model not in files.variants:
                axes.fill_between(10**grid, row, curve, color=color, alpha=0.3, linewidth=0)
            axes.plot(10**grid, curve, color=color, linewidth=1.3)
            median = 10 ** float(np.median(logs[language, model]))
            axes.plot([median, median], [row, row - 0.3], color=color, linewidth=2.4, solid_capstyle="butt")
    _perplexity_axis(axes, 10 ** grid[0], 10 ** grid[-1])
    axes.set_yticks(range(len(languages)), [language_name(language) for language in languages], va="bottom")
    axes.set_ylim(len(languages) - 0.75, -1.05)
    legend(figure, looks)
    return figure


def _perplexity_axis(axes: Axes, low: float, high: float) -> None:
    marks = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks([mark for mark in marks if low <= mark <= high], minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("perplexity of a completion given its prompt (log scale)")


def density(values: NDArray, grid: NDArray) -> NDArray:
    """Return a Gaussian kernel density at the points of an even grid, ``(num_points,)``.

    The bandwidth is Silverman's (*Density Estimation*, 1986, eq. 3.31), but at least two steps of the grid, so that
    equal values have a density, too.
    """
    import numpy as np
    from scipy.stats import iqr, norm

    spread = min(values.std(), iqr(values) / 1.34) or values.std()
    bandwidth = max(0.9 * spread * len(values) ** -0.2, 2 * (grid[1] - grid[0]))
    curve: NDArray = norm.pdf(grid[:, np.newaxis], values, bandwidth).mean(axis=1)
    return curve


def training_curves(files: RunFiles, has_ln_2: bool) -> Figure | None:
    """Draw loss, accuracy, margin and rewards of training and validation by step.

    Each variant has a colour; the trainings of one point of a sweep have the same.

    Args:
        has_ln_2: whether to draw ln 2, the first value of the sigmoid loss.
    """
    if not any(files.training.values()):
        return None
    names = {variant: files.shown_as(variant) for variant in files.training}
    figure, grid = new_figure(5.2, 2, 2, sharex=True)
    panels: list[tuple[str, Axes, dict[str, str]]] = [
        ("Loss", grid[0, 0], {"loss": "-"}),
        ("Reward accuracy", grid[0, 1], {"accuracy": "-"}),
        ("Reward margin", grid[1, 0], {"margin": "-"}),
        ("Rewards: chosen –, rejected - -", grid[1, 1], {"reward_chosen": "-", "reward_rejected": "--"}),
    ]
    looks = model_looks([], list(dict.fromkeys([*files.variants, *names.values()])))
    for title, axes, line_styles in panels:
        axes.set_title(title)
        axes.grid(axis="y")
        for variant, records in files.training.items():
            for key, line_style in line_styles.items():
                _draw_curve(axes, records, key, looks[names[variant]]["facecolor"], line_style)
    if has_ln_2:
        axes = panels[0][1]
        axes.axhline(math.log(2), color=MUTED, linewidth=1, linestyle=":")
        position = {"xy": (1, math.log(2)), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate("ln 2", xytext=(-2, 3), ha="right", fontsize=8, color=MUTED, **position)
    for axes in grid[1]:
        axes.set_xlabel("step")
    legend(figure, {name: looks[name] for name in names.values()})
    return figure


def _draw_curve(axes: Axes, records: list[dict[str, Any]], key: str, color: str, line_style: str) -> None:
    """Draw a value by step, pale as it is and strong smoothed, and its validation values as dots."""
    steps, values = _points(records, key)
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.6, linestyle=line_style)
    fill = "full" if line_style == "-" else "none"
    steps, values = _points(records, f"eval_{key}")
    axes.plot(steps, values, color=color, linewidth=0, marker="o", markersize=4, fillstyle=fill)


def _points(records: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps that have a value of ``key``, and the values."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _smooth(values: list[float]) -> list[float]:
    """Return the mean of each value and up to four neighbours on either side, the same number on both."""
    reaches = (min(4, index, len(values) - 1 - index) for index in range(len(values)))
    return [sum(values[index - reach : index + reach + 1]) / (2 * reach + 1) for index, reach in enumerate(reaches)]


def svg(figure: Figure) -> bytes:
    """Return the figure as an SVG file, without anything that differs from call to call."""
    return _saved(figure, "svg", {"Date": None, "Creator": None, "Type": None, "Format": None})


def pdf(figure: Figure) -> bytes:
    """Return the figure as a PDF file, without anything that differs from call to call."""
    return _saved(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def inline(svg_file: bytes, name: str, description: str) -> Markup:
    """Return an SVG file as an element of the page, with unique ids, the page's colours, and a description."""
    text = svg_file.decode()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view = re.search(r'viewBox="([^"]*)"', text)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub("#[0-9a-f]{6}", lambda match: _page_color(match[0]), body)
    head = Markup('<svg class="drawn" role="img" aria-label="{}" viewBox="{}">').format(
        description, view[1] if view else ""
    )
    return head + Markup(body)


def _page_color(color: str) -> str:
    return f"var({THEME[color]})" if color in THEME else color
