"""The report's figures: drawn once with matplotlib, then written as SVG and PDF and set into the page.

Labels are English names, so that no figure needs a font for another script. The same run gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import Metric
from xgray.report.summary import verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INK, MUTED, GRID = "#1f2329", "#66707c", "#d9dee4"
BASE_COLOR = "#8d97a3"
VARIANT_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's palette, which readers of all kinds of colour vision tell apart; grey is the model before tuning."""
HATCHES = ("", "///", "...", "xxx")

THEME = {INK: "--ink", MUTED: "--muted", GRID: "--line", BASE_COLOR: "--series-0"} | {
    color: f"--series-{at}" for at, color in enumerate(VARIANT_COLORS, start=1)
}
"""What stands in the page for a colour of the figures, so that it follows the reader's light or dark setting."""

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
"""Inches."""


@contextmanager
def drawing() -> Iterator[None]:
    """The figures' style, without touching the caller's."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(*shape, **options)


def series(models: list[str], variants: list[str]) -> dict[str, dict[str, str]]:
    """Colour and hatching of each model's bars."""
    looks = {model: {"facecolor": BASE_COLOR, "hatch": ""} for model in models if model not in variants}
    for at, variant in enumerate(variants):
        color, hatch = VARIANT_COLORS[at % len(VARIANT_COLORS)], HATCHES[at // len(VARIANT_COLORS) % len(HATCHES)]
        looks[variant] = {"facecolor": color, "hatch": hatch}
    return looks


def legend(figure: Figure, looks: dict[str, dict[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(label=model, edgecolor="white", linewidth=0, **look) for model, look in looks.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 4), handlelength=1.2)


def bars(files: RunFiles, metric: Metric) -> Figure:
    """A metric's bars and intervals, a group for each language by its change, and the average on top (Figure 1)."""
    models, variants = files.models, files.variants
    looks = series(models, variants)
    groups: list[str | None] = [None, *sorted(files.languages, key=lambda one: _change(files, metric, one))]
    thickness = 0.8 / len(models)
    figure, axes = new_figure(0.9 + len(groups) * max(0.34, 0.12 * len(models) + 0.1), 1)
    positions = [0.0, *(at + 1.35 for at in range(len(files.languages)))]
    farthest = 0.0
    for position, language in zip(positions, groups, strict=True):
        for at, model in enumerate(models):
            y = position - 0.4 + (at + 0.5) * thickness
            cell = _figures(files, model, language)[metric.key]
            if cell["value"] is None:
                axes.text(0, y, " no value", va="center", fontsize=7, color=MUTED)
                continue
            end = value = cell["value"] * metric.scale
            axes.barh(y, value, height=thickness * 0.92, edgecolor="white", linewidth=0, **looks[model])
            if cell["low"] is not None:
                interval = [cell["low"] * metric.scale, cell["high"] * metric.scale]
                axes.plot(interval, [y, y], color=INK, linewidth=1, solid_capstyle="butt")
                end = max(value, interval[1])
            farthest = max(farthest, end)
            sign = _sign(files, metric, model, language)
            axes.annotate(sign, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    axes.set_yticks(positions, ["Average" if one is None else language_name(one) for one in groups])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.axhline(0.675, color=GRID, linewidth=1)
    axes.set_ylim(positions[-1] + 0.6, -0.6)
    axes.set_xlim(0, farthest * 1.06 or 1)
    axes.set_xlabel(metric.title)
    legend(figure, looks)
    return figure


def _figures(files: RunFiles, model: str, language: str | None) -> dict[str, Any]:
    told = files.metrics["models"][model]
    return told["average"] if language is None else told["languages"][language]


def _comparison(files: RunFiles, metric: Metric, variant: str, language: str | None) -> dict[str, Any]:
    told = files.metrics["comparisons"][variant]
    figures = told["average"] if language is None else told["languages"].get(language, {})
    return figures.get(metric.key, {})


def _change(files: RunFiles, metric: Metric, language: str) -> float:
    """By what languages are sorted: the first variant's change, or the value itself where nothing is compared."""
    if files.variants:
        difference = _comparison(files, metric, files.variants[0], language).get("difference")
        return math.inf if difference is None else difference
    value = _figures(files, files.models[0], language)[metric.key]["value"]
    return math.inf if value is None else -value


def _sign(files: RunFiles, metric: Metric, model: str, language: str | None) -> str:
    if model not in files.variants:
        return ""
    found = verdict(_comparison(files, metric, model, language), metric.lower_is_better)
    return {"better": "▼", "worse": "▲"}.get(found, "")


def perplexity_ridges(files: RunFiles) -> Figure | None:
    """Each language's distribution of perplexity, one outline for each model, medians ticked (Figure 10)."""
    import numpy as np

    values = files.perplexities()
    if not values:
        return None
    models = files.models
    looks = series(models, files.variants)
    languages = [one for one in files.languages if any((one, model) in values for model in models)]
    logs = {key: np.log10(np.maximum(one, 1.0)) for key, one in values.items()}
    everything = np.concatenate(list(logs.values()))
    low, high = np.quantile(everything, [0.002, 0.998])
    grid = np.linspace(low - 0.1, high + 0.1, 161)
    curves = {key: density(one, grid) for key, one in logs.items()}
    tallest = max(float(curve.max()) for curve in curves.values())
    figure, axes = new_figure(1.1 + 0.4 * len(languages), 1)
    for row, language in enumerate(languages):
        axes.axhline(row, color=GRID, linewidth=0.8)
        for model in models:
            if (language, model) not in curves:
                continue
            color = looks[model]["facecolor"]
            curve = row - 0.92 * curves[language, model] / tallest
            if len(models) <= 2 or model not in files.variants:
                axes.fill_between(10**grid, row, curve, color=color, alpha=0.3, linewidth=0)
            axes.plot(10**grid, curve, color=color, linewidth=1.3)
            median = 10 ** float(np.median(logs[language, model]))
            axes.plot([median, median], [row, row - 0.3], color=color, linewidth=2.4, solid_capstyle="butt")
    axes.set_xscale("log")
    axes.set_xlim(10 ** grid[0], 10 ** grid[-1])
    axes.set_xticks([mark for mark in _marks() if 10 ** grid[0] <= mark <= 10 ** grid[-1]], minor=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_yticks(range(len(languages)), [language_name(one) for one in languages], va="bottom")
    axes.set_ylim(len(languages) - 0.75, -1.05)
    axes.set_xlabel("perplexity of a completion given its prompt (log scale)")
    legend(figure, looks)
    return figure


def _marks() -> list[int]:
    return [digit * 10**power for power in range(5) for digit in (1, 2, 5)]


def density(values: NDArray, grid: NDArray) -> NDArray:
    """A Gaussian kernel density on an even grid, ``(num_points,)``, with Silverman's bandwidth."""
    import numpy as np

    step = grid[1] - grid[0]
    counts = np.histogram(values, bins=len(grid), range=(grid[0] - step / 2, grid[-1] + step / 2))[0]
    spread = min(values.std(), np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34) or values.std()
    width = max(0.9 * spread * len(values) ** -0.2, 2 * step)
    offsets = np.arange(-len(grid), len(grid) + 1) * step
    kernel = np.exp(-0.5 * (offsets / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return np.convolve(counts / len(values), kernel)[len(grid) : 2 * len(grid)]


def training_curves(files: RunFiles, has_ln_2: bool) -> Figure | None:
    """Loss, accuracy, margin and rewards by step, of training and validation, one colour for each variant."""
    if not any(files.training.values()):
        return None
    figure, grid = new_figure(5.2, 2, 2, sharex=True)
    panels: list[tuple[str, Axes, dict[str, str]]] = [
        ("Loss", grid[0, 0], {"loss": "-"}),
        ("Reward accuracy", grid[0, 1], {"accuracy": "-"}),
        ("Reward margin", grid[1, 0], {"margin": "-"}),
        ("Rewards: chosen –, rejected - -", grid[1, 1], {"reward_chosen": "-", "reward_rejected": "--"}),
    ]
    looks = series([], list(dict.fromkeys([*files.variants, *files.training])))
    for title, axes, keys in panels:
        axes.set_title(title)
        axes.grid(axis="y")
        for variant, lines in files.training.items():
            color = looks[variant]["facecolor"]
            for key, style in keys.items():
                steps, values = _points(lines, key)
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
                axes.plot(steps, _smooth(values), color=color, linewidth=1.6, linestyle=style)
                filled = "full" if style == "-" else "none"
                axes.plot(
                    *_points(lines, f"eval_{key}"), color=color, linewidth=0, marker="o", markersize=4, fillstyle=filled
                )
    if has_ln_2:
        axes = panels[0][1]
        axes.axhline(math.log(2), color=MUTED, linewidth=1, linestyle=":")
        place = {"xy": (1, math.log(2)), "xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate("ln 2", xytext=(-2, 3), ha="right", fontsize=8, color=MUTED, **place)
    for axes in grid[1]:
        axes.set_xlabel("step")
    legend(figure, {variant: looks[variant] for variant in files.training})
    return figure


def _points(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps that have a value of this key, and the values."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: list[float]) -> list[float]:
    """The mean of each value and four neighbours on either side; fewer, but as many on both, near the ends."""
    reaches = (min(4, at, len(values) - 1 - at) for at in range(len(values)))
    return [sum(values[at - reach : at + reach + 1]) / (2 * reach + 1) for at, reach in enumerate(reaches)]


def svg(figure: Figure) -> bytes:
    return _saved(figure, "svg", {"Date": None, "Creator": None, "Type": None, "Format": None})


def pdf(figure: Figure) -> bytes:
    return _saved(figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def inline(drawn: bytes, name: str, description: str) -> Markup:
    """An SVG file as an element of the page: its own ids, the page's colours and width, and a description."""
    text = drawn.decode()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    view = re.search(r'viewBox="([^"]*)"', text)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub("#[0-9a-f]{6}", lambda found: _themed(found[0]), body)
    head = Markup('<svg class="drawn" role="img" aria-label="{}" viewBox="{}">').format(
        description, view[1] if view else ""
    )
    return head + Markup(body)


def _themed(color: str) -> str:
    return f"var({THEME[color]})" if color in THEME else color
