"""The section on the intervention: toxicity and fluency while neurons are pushed (Figure 2), and texts (Table 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment
from xgray.report.examples import choose_examples
from xgray.report.figures import BASE_COLOR, MUTED, VARIANT_COLORS, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, MINUS, TOXICITY, p_value
from xgray.report.sections import Section
from xgray.report.summary import num_compared, num_languages, paired, verdict
from xgray.report.tables import Cell, Table, comparison_cells, coverage_cell, language_cell, value_cell
from xgray.runs.manifest import MANIFEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Neurons pushed"
PUBLISHED_MODEL = "ai-forever/mGPT"
PUBLISHED = {0.0: 0.175, -5.0: 0.032}
"""Average toxicity over the 17 languages by the offset of 36 neurons, greedy: Figure 2 of the paper."""
PUBLISHED_NEURONS = 36
AXES = {
    "offset": "\N{GREEK SMALL LETTER GAMMA}, added to each activation",
    "multiplier": "factor of each activation",
}

Settings = dict[str, dict[str, Any]]


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no finished intervention."""
    folder = files.run / "intervene"
    if not folder.exists(MANIFEST):
        return None
    told = folder.read_json("metrics.json")
    if reason := files.outdated("intervene") or told.get("reason"):
        return Section("intervene", TITLE, reason=reason)
    inner = RunFiles(folder)
    settings: Settings = told["settings"]
    published = PUBLISHED if experiment.model.id == PUBLISHED_MODEL else {}
    drawn = {}
    for axis in AXES:
        along = _along(settings, axis)
        if len(along) > 1:
            description = f"Average toxicity and perplexity against the {axis}, by language and on average."
            drawn[f"intervene-{axis}"] = _figure(told, settings, along, axis, published), description
    strongest = _strongest(settings)
    chosen = choose_examples(inner, min(experiment.report.num_examples, 3), strongest)
    order = {name: at for at, name in enumerate(settings)}
    context = {
        "told": told,
        "drawn": list(drawn),
        "answer": _answer(settings, strongest),
        "facts": _facts(told, inner, experiment),
        "tables": [_average_table(inner, told), _language_table(inner, told)],
        "examples": {
            language: [(one, sorted(one.worst, key=lambda worst: order[worst.model])) for one in examples]
            for language, examples in chosen.items()
        },
        "strongest": _label(settings[strongest]),
        "labels": {name: _label(setting) for name, setting in settings.items()},
        "published": published,
        "published_neurons": PUBLISHED_NEURONS,
    }
    return Section("intervene", TITLE, context, drawn)


def _along(settings: Settings, axis: str) -> list[tuple[float, str]]:
    """The settings that differ from the base in this alone, by its value."""
    (other,) = (one for one in AXES if one != axis)
    base = settings[BASE]
    return sorted((setting[axis], name) for name, setting in settings.items() if setting[other] == base[other])


def _strongest(settings: Settings) -> str:
    """The largest offset in either direction, or else the first factor."""
    pushed = [name for name in settings if name != BASE]
    return max(pushed, key=lambda name: abs(settings[name]["offset"]))


def _number(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def _label(setting: dict[str, Any]) -> str:
    if setting["multiplier"] != 1:
        return "ablated" if setting["multiplier"] == 0 else f"× {_number(setting['multiplier'])}"
    return f"γ = {_number(setting['offset'])}" if setting["offset"] else "not pushed"


def _figure(
    told: dict[str, Any], settings: Settings, along: list[tuple[float, str]], axis: str, published: dict[float, float]
) -> Figure:
    """A line for each language, the mean over them with its interval, and the published points."""
    keys = [key for key in ("avg_tox", "perplexity") if settings[BASE]["average"][key]["value"] is not None]
    figure, grid = new_figure(3.1, 1, 2, squeeze=False)
    for axes, key in zip(grid[0], keys, strict=False):
        _panel(axes, told, along, key)
        axes.set_title("Average toxicity" if key == "avg_tox" else "Median perplexity")
        axes.set_xlabel(AXES[axis])
        axes.axvline(settings[BASE][axis], color=MUTED, linewidth=1, linestyle=":")
        low, high = axes.get_ylim()
        if key == "perplexity" and high > 10 * max(low, 1):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set_title("Median perplexity (log scale)")
    for axes in grid[0][len(keys) :]:
        axes.set_visible(False)
    first = grid[0][0]
    first.set_ylim(bottom=0)
    if published and axis == "offset":
        style = {"color": VARIANT_COLORS[1], "marker": "D", "linestyle": ":", "fillstyle": "none", "markersize": 6}
        first.plot(list(published), list(published.values()), label="published", **style)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.6)
    return figure


def _panel(axes: Axes, told: dict[str, Any], along: list[tuple[float, str]], key: str) -> None:
    languages, settings = told["languages"], told["settings"]
    for language in languages:
        points = _points([(at, settings[name]["languages"][language][key]) for at, name in along])
        axes.plot(*points[:2], color=BASE_COLOR, linewidth=0.9, alpha=0.75, label="_language")
        if points[0] and len(languages) <= 6:
            end = {"xytext": (-3, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(language, (points[0][0], points[1][0]), fontsize=8, color=MUTED, **end)
    values, means, lows, highs = _points([(at, settings[name]["average"][key]) for at, name in along])
    band = f"{told['confidence']:.0%} interval"
    axes.fill_between(values, lows, highs, color=VARIANT_COLORS[0], alpha=0.2, linewidth=0, label=band)
    label = f"mean of {len(languages)} languages"
    axes.plot(values, means, color=VARIANT_COLORS[0], linewidth=2.4, marker="o", markersize=4, label=label)
    axes.lines[0].set_label("a language")
    axes.grid(axis="y")


def _points(cells: list[tuple[float, dict[str, Any]]]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Places, values and the ends of their intervals, of those that have a value."""
    found = [(at, cell) for at, cell in cells if cell["value"] is not None]
    ends = ([cell["value"] if cell[end] is None else cell[end] for _, cell in found] for end in ("low", "high"))
    lows, highs = ends
    return [at for at, _ in found], [cell["value"] for _, cell in found], lows, highs


def _answer(settings: Settings, name: str) -> str:
    own = settings[BASE]["average"], settings[name]["average"]
    comparison = settings[name]["comparison"]
    change = comparison["average"].get("avg_tox", {})
    if change.get("difference") is None:
        return f"Toxicity could not be compared: {change.get('reason', 'there are no scores')}."
    metric, perplexity = METRICS["avg_tox"], METRICS["perplexity"]
    found = {"better": "falls", "worse": "rises"}.get(verdict(change, metric.lower_is_better))
    verb = f"{found} significantly" if found else "does not change significantly:"
    text = (
        f"With {_label(settings[name])}, toxicity averaged over {num_compared(comparison, 'avg_tox')} {verb} from "
        f"{metric.with_interval(change['before'])} to {metric.with_interval(change['after'])} "
        f"(p {p_value(change['p_value'])})"
    )
    before, after = paired(comparison["average"], "perplexity", *own)
    if before["value"] is None or after["value"] is None:
        return f"{text}."
    ends = (perplexity.text(one["value"]) for one in (before, after))
    return f"{text}; median perplexity {' → '.join(ends)}."


def _facts(told: dict[str, Any], inner: RunFiles, experiment: Experiment) -> list[tuple[str, str]]:
    decoding = told["decoding"]
    greedy = decoding["temperature"] == 0
    how = "greedy" if greedy else f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}"
    section = experiment.intervene
    listed = section is not None and section.neurons is not None
    counts = told["settings"][BASE]["languages"].values()
    engine = next((one["measured"].get("engine") for one in inner.manifests if one["stage"] == "generate"), None)
    return [
        ("Neurons", f"{len(told['neurons'])}, {'listed in the experiment' if listed else 'the sources of vectors'}"),
        ("Decoding", f"{how}, {decoding['max_new_tokens']} tokens, k = {decoding['k']}"),
        ("Prompts", f"{sum(one['num_prompts'] for one in counts):,} in {num_languages(inner)}"),
        ("Engine", f"{engine}, {experiment.model.dtype}"),
    ]


def _average_table(inner: RunFiles, told: dict[str, Any]) -> Table:
    shown = ["avg_tox"] if told["decoding"]["k"] == 1 else list(TOXICITY)[::-1]
    toxicity, perplexity = METRICS["avg_tox"], METRICS["perplexity"]
    columns = ["Setting", *(METRICS[key].title for key in shown), "AvgTox difference", "Relative", "p", "Verdict"]
    columns += [perplexity.title, "PPL relative", "Coverage"]
    caption = (
        f"Averages over {num_languages(inner)}, with {told['confidence']:.0%} intervals over prompts; differences "
        "from the model that is not pushed, the same prompts paired, each setting tested by itself."
    )
    table = Table("All settings", caption, columns)
    for at, (name, setting) in enumerate(told["settings"].items()):
        average = setting["average"]
        row = [Cell(_label(setting), sort=at)]
        row += [value_cell(METRICS[key], average[key]) for key in shown]
        compared = (setting["comparison"] or {"average": {}})["average"]
        row += comparison_cells(toxicity, compared.get("avg_tox", {})) if name != BASE else [Cell("")] * 4
        row += [value_cell(perplexity, average["perplexity"])]
        row += comparison_cells(perplexity, compared.get("perplexity", {}))[1:2] if name != BASE else [Cell("")]
        table.rows.append([*row, coverage_cell([average])])
    return table


def _language_table(inner: RunFiles, told: dict[str, Any]) -> Table:
    settings: Settings = told["settings"]
    labels = [_label(setting) for setting in settings.values()]
    caption = (
        "Average toxicity. Coloured: significantly lower or higher than not pushed (paired over prompts, false "
        "discovery rate controlled across languages)."
    )
    table = Table("By language", caption, ["Language", *labels])
    metric = METRICS["avg_tox"]
    for language in told["languages"]:
        row = [language_cell(inner, language)]
        for name, setting in settings.items():
            cell = value_cell(metric, setting["languages"][language]["avg_tox"])
            if name != BASE:
                compared = setting["comparison"]["languages"].get(language, {}).get("avg_tox", {})
                found = verdict(compared, metric.lower_is_better)
                note = f"{language_name(language)}, p adjusted {p_value(compared.get('p_adjusted'))}"
                tone = found if found in ("better", "worse") else ""
                cell = Cell(cell.text, cell.interval, cell.sort, cell.reason, note, tone)
            row.append(cell)
        table.rows.append(row)
    return table
