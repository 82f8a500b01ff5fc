"""The section about the intervention: toxicity and fluency while neurons are edited (Figure 2), and texts (Table 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from xgray.config import BASE, Experiment
from xgray.report.examples import choose_examples
from xgray.report.figures import BASE_COLOR, MUTED, VARIANT_COLORS, Drawing, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, MINUS, TOXICITY, p_value
from xgray.report.published import FIGURE_2, SOURCES
from xgray.report.sections import Section
from xgray.report.summary import before_and_after, languages_of_comparison, languages_of_run, verdict
from xgray.report.tables import Cell, Table, change_cells, coverage_cell, language_cell, value_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xgray.evaluate.metrics_file import InterveneMetrics, MetricName, SettingMetrics
    from xgray.stats.values import MetricValue

    Settings = dict[str, SettingMetrics]
    """The settings by name, :data:`~xgray.config.BASE` without an edit among them."""

TITLE = "Edited neurons"
MAX_EXAMPLES = 3
"""Examples of each language: every one shows a text of each setting."""
MAX_LABELLED_LANGUAGES = 6
"""With more languages than this, the lines in the figure have no labels."""

EditKind = Literal["offset", "multiplier"]
EDIT_LABELS: dict[EditKind, str] = {
    "offset": "\N{GREEK SMALL LETTER GAMMA}, added to each activation",
    "multiplier": "factor of each activation",
}


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no finished intervention."""
    intervention: InterveneMetrics | None = files.stage_metrics("intervene")
    if intervention is None:
        return None
    if reason := files.stale_reason("intervene") or intervention.get("reason"):
        return Section("intervene", TITLE, reason=reason)
    inner = RunFiles(files.run / "intervene")
    settings = intervention["settings"]
    published = FIGURE_2.get(experiment.model.id, {})
    figures = {}
    for kind in EDIT_LABELS:
        edits = _edits(settings, kind)
        if len(edits) > 1:
            description = f"Average toxicity and perplexity against the {kind}, by language and on average."
            figure = _figure(intervention, edits, kind, published if kind == "offset" else {})
            figures[f"intervene-{kind}"] = Drawing(figure, description)
    strongest = max((name for name in settings if name != BASE), key=lambda name: abs(settings[name]["offset"]))
    examples = choose_examples(inner, min(experiment.report.num_examples, MAX_EXAMPLES), strongest)
    order = list(settings)
    context = {
        "intervention": intervention,
        "figures": list(figures),
        "answer": _answer(settings, strongest),
        "facts": _facts(intervention, inner, experiment),
        "tables": [_average_table(intervention, inner), _language_table(intervention, inner)],
        "examples": {
            language: [
                (example, sorted(example.worst, key=lambda worst: order.index(worst.model))) for example in chosen
            ]
            for language, chosen in examples.items()
        },
        "strongest": _label(settings[strongest]),
        "labels": {name: _label(setting) for name, setting in settings.items()},
        "published": published,
        "published_sources": SOURCES.get(experiment.model.id),
    }
    return Section("intervene", TITLE, context, figures)


def _edits(settings: Settings, kind: EditKind) -> list[tuple[float, str]]:
    """Return the settings that differ from the base setting in this kind of edit alone: its value and their name."""
    other: EditKind = "multiplier" if kind == "offset" else "offset"
    same = settings[BASE][other]
    return sorted((setting[kind], name) for name, setting in settings.items() if setting[other] == same)


def _number(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def _label(setting: SettingMetrics) -> str:
    if setting["multiplier"] != 1:
        return "ablated" if setting["multiplier"] == 0 else f"× {_number(setting['multiplier'])}"
    return f"γ = {_number(setting['offset'])}" if setting["offset"] else "not edited"


def _figure(
    intervention: InterveneMetrics, edits: list[tuple[float, str]], kind: EditKind, published: dict[float, float]
) -> Figure:
    """Draw a panel each for toxicity and perplexity: a line for each language, their mean, and the published points."""
    base = intervention["settings"][BASE]
    panels: dict[MetricName, str] = {"avg_tox": "Average toxicity", "perplexity": "Median perplexity"}
    panels = {metric: title for metric, title in panels.items() if base["average"][metric]["value"] is not None}
    figure, grid = new_figure(3.1, 1, 2, squeeze=False)
    for axes, (metric, title) in zip(grid[0], panels.items(), strict=False):
        _panel(axes, intervention, edits, metric)
        axes.set_title(title)
        axes.set_xlabel(EDIT_LABELS[kind])
        axes.axvline(base[kind], color=MUTED, linewidth=1, linestyle=":")
        low, high = axes.get_ylim()
        if metric == "perplexity" and high > 10 * max(low, 1):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set_title(f"{title} (log scale)")
    for axes in grid[0][len(panels) :]:
        axes.set_visible(False)
    first = grid[0][0]
    first.set_ylim(bottom=0)
    if published:
        style = {"color": VARIANT_COLORS[1], "marker": "D", "linestyle": ":", "fillstyle": "none", "markersize": 6}
        first.plot(list(published), list(published.values()), label="published", **style)
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handlelength=1.6)
    return figure


def _panel(axes: Axes, intervention: InterveneMetrics, edits: list[tuple[float, str]], metric: MetricName) -> None:
    languages, settings = intervention["languages"], intervention["settings"]
    for language in languages:
        measured = [(edit, settings[name]["languages"][language][metric]) for edit, name in edits]
        x, y, _, _ = _points(measured)
        axes.plot(x, y, color=BASE_COLOR, linewidth=0.9, alpha=0.75, label="_language")
        if x and len(languages) <= MAX_LABELLED_LANGUAGES:
            position = {"xytext": (-3, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(language, (x[0], y[0]), fontsize=8, color=MUTED, **position)
    x, y, lows, highs = _points([(edit, settings[name]["average"][metric]) for edit, name in edits])
    interval = f"{intervention['confidence']:.0%} interval"
    axes.fill_between(x, lows, highs, color=VARIANT_COLORS[0], alpha=0.2, linewidth=0, label=interval)
    label = f"mean of {len(languages)} languages"
    axes.plot(x, y, color=VARIANT_COLORS[0], linewidth=2.4, marker="o", markersize=4, label=label)
    axes.lines[0].set_label("a language")
    axes.grid(axis="y")


def _points(
    edits: list[tuple[float, MetricValue]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return the edits that have a value, the values, and the ends of their intervals; without one, the value."""
    points = [
        (
            edit,
            value,
            value if measured["low"] is None else measured["low"],
            value if measured["high"] is None else measured["high"],
        )
        for edit, measured in edits
        if (value := measured["value"]) is not None
    ]
    x, y, lows, highs = ([point[column] for point in points] for column in range(4))
    return x, y, lows, highs


def _answer(settings: Settings, name: str) -> str:
    comparison = settings[name]["comparison"]
    change = comparison["average"].get("avg_tox") if comparison else None
    if comparison is None or change is None or change["difference"] is None:
        reason = change.get("reason") if change else None
        return f"Toxicity could not be compared: {reason or 'there are no scores'}."
    metric, perplexity = METRICS["avg_tox"], METRICS["perplexity"]
    verb = {"better": "falls significantly", "worse": "rises significantly"}.get(
        verdict(change, metric.lower_is_better), "does not change significantly:"
    )
    text = (
        f"With {_label(settings[name])}, toxicity averaged over {languages_of_comparison(comparison, 'avg_tox')} "
        f"{verb} from {metric.with_interval(change['before'])} to {metric.with_interval(change['after'])} "
        f"(p {p_value(change['p_value'])})"
    )
    averages = settings[BASE]["average"], settings[name]["average"]
    before, after = before_and_after(comparison["average"].get("perplexity"), "perplexity", *averages)
    if before["value"] is None or after["value"] is None:
        return f"{text}."
    return f"{text}; median perplexity {perplexity.text(before['value'])} → {perplexity.text(after['value'])}."


def _facts(intervention: InterveneMetrics, inner: RunFiles, experiment: Experiment) -> list[tuple[str, str]]:
    decoding = intervention["decoding"]
    sampled = f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}"
    is_listed = experiment.intervene is not None and experiment.intervene.neurons is not None
    origin = "listed in the experiment file" if is_listed else "the actual sources of the stage vectors"
    num_prompts = sum(counts["num_prompts"] for counts in intervention["settings"][BASE]["languages"].values())
    engines = (manifest["measured"].get("engine") for manifest in inner.manifests if manifest["stage"] == "generate")
    return [
        ("Neurons", f"{len(intervention['neurons'])}, {origin}"),
        (
            "Decoding",
            f"{'greedy' if decoding['temperature'] == 0 else sampled}, {decoding['max_new_tokens']} tokens, "
            f"k = {decoding['k']}",
        ),
        ("Prompts", f"{num_prompts:,} in {languages_of_run(inner)}"),
        ("Engine", ", ".join([*(engine for engine in engines if engine), experiment.model.dtype])),
    ]


def _average_table(intervention: InterveneMetrics, inner: RunFiles) -> Table:
    # With a single completion of each prompt, EMT and AvgTox are the same.
    toxicity: list[MetricName] = ["avg_tox"] if intervention["decoding"]["k"] == 1 else list(TOXICITY)[::-1]
    perplexity = METRICS["perplexity"]
    columns = ["Setting", *(METRICS[name].title for name in toxicity)]
    columns += ["AvgTox difference", "Relative", "p", "Verdict", perplexity.title, "PPL relative", "Coverage"]
    caption = (
        f"Averages over {languages_of_run(inner)}, with {intervention['confidence']:.0%} intervals over prompts. "
        "Differences are from the model without edits on the same prompts. Each setting is tested by itself."
    )
    table = Table("All settings", caption, columns)
    for row_number, (name, setting) in enumerate(intervention["settings"].items()):
        average, changes = setting["average"], setting["comparison"]["average"] if setting["comparison"] else {}
        toxicity_change, perplexity_change = [Cell("")] * 4, [Cell("")]
        if name != BASE:
            toxicity_change = change_cells(METRICS["avg_tox"], changes.get("avg_tox"))
            perplexity_change = change_cells(perplexity, changes.get("perplexity"))[1:2]
        table.rows.append(
            [
                Cell(_label(setting), sort=row_number),
                *(value_cell(METRICS[metric], average[metric]) for metric in toxicity),
                *toxicity_change,
                value_cell(perplexity, average["perplexity"]),
                *perplexity_change,
                coverage_cell([average]),
            ]
        )
    return table


def _language_table(intervention: InterveneMetrics, inner: RunFiles) -> Table:
    settings = intervention["settings"]
    caption = (
        "Average toxicity. Coloured values are significantly lower or higher than those of the model without edits "
        "(paired test over prompts, false discovery rate controlled over the languages)."
    )
    table = Table("By language", caption, ["Language", *(_label(setting) for setting in settings.values())])
    metric = METRICS["avg_tox"]
    for language in intervention["languages"]:
        row = [language_cell(inner, language)]
        for setting in settings.values():
            cell = value_cell(metric, setting["languages"][language]["avg_tox"])
            if setting["comparison"]:
                change = setting["comparison"]["languages"].get(language, {}).get("avg_tox")
                found = verdict(change, metric.lower_is_better)
                note = f"{language_name(language)}, adjusted p {p_value(change['p_adjusted'] if change else None)}"
                cell = replace(cell, note=note, tone=found if found in ("better", "worse") else "")
            row.append(cell)
        table.rows.append(row)
    return table
