"""Mean activation of the sources of toxicity by language, before and after tuning (the paper's Figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import BASE, Experiment
from xgray.report.figures import GRID, INK, MUTED, legend, new_figure, series
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import Metric, number, p_value
from xgray.report.sections import Section
from xgray.report.summary import verdict
from xgray.report.tables import Cell, Table, value_cell
from xgray.runs.manifest import MANIFEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Activations of the sources"
MEAN = Metric("mean", "Mean activation", "", digits=4)
AVERAGE = "Average"
VERDICTS = {"better": "▼ quieter", "worse": "▲ louder", "unchanged": "not significant"}

PUBLISHED_MODEL = "ai-forever/mGPT"
PUBLISHED = {
    None: (0.0524, -0.0108),
    "en": (0.1040, -0.0047),
    "de": (0.0814, -0.0027),
    "zh-hans": (0.0594, 0.0138),
    "ko": (0.0297, -0.0193),
    "cs": (-0.0187, -0.0270),
}
"""Figure 3 of the paper, before and after DPO, those that its text gives: 36 neurons of mGPT, 20 greedy tokens. None is
the average over its 17 languages."""

Told = dict[str, dict[str, Any]]
"""Each model's ``activations/{model}/metrics.json``, the one before tuning first."""


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no activations of the model before tuning."""
    names = [BASE, *(variant.name for variant in experiment.variants)]
    folders = {name: files.run / "activations" / name for name in names}
    told = {name: one.read_json("metrics.json") for name, one in folders.items() if one.exists(MANIFEST)}
    if BASE not in told:
        return None
    if reason := files.outdated(*(f"activations/{name}" for name in told)) or told[BASE].get("reason"):
        return Section("activations", TITLE, reason=reason)
    first = told[BASE]
    languages = _sorted_languages(told)
    paper = PUBLISHED if experiment.model.id == PUBLISHED_MODEL else {}
    words = " and ".join(told)
    given = experiment.activations is not None and experiment.activations.neurons is not None
    context = {
        "answers": [_answer(told, model) for model in told if "change" in told[model]],
        "num_neurons": len(first["neurons"]),
        "origin": "the experiment file names" if given else "the stage vectors found to be actual sources",
        "new_tokens": first["new_tokens"],
        "confidence": first["confidence"],
        "num_prompts": first["average"]["num_prompts"],
        "num_tokens": {model: one["average"]["num_tokens"] for model, one in told.items()},
        "languages": _language_table(told, languages, paper),
        "neurons": _neuron_table(told),
        "published": bool(paper),
    }
    drawn = {"activations": (_figure(told, languages), f"Mean activation by language for {words}, with intervals.")}
    return Section("activations", TITLE, context, drawn)


def _of(one: dict[str, Any], language: str | None) -> dict[str, Any]:
    """What a metrics file, or a change in one, says of a language, or of the average (None)."""
    found: dict[str, Any] = one["average"] if language is None else one["languages"][language]
    return found


def _sorted_languages(told: Told) -> list[str]:
    """By the first tuned model's change, the one that was quieted most first; by name where nothing is compared."""
    changes = next((one["change"] for one in told.values() if "change" in one), None)
    languages = sorted(told[BASE]["languages"], key=language_name)
    return sorted(languages, key=lambda one: _of(changes, one)["difference"]) if changes else languages


def _answer(told: Told, model: str) -> str:
    before, after, change = told[BASE]["average"]["mean"], told[model]["average"]["mean"], told[model]["change"]
    found = [verdict(one, lower_is_better=True) for one in change["languages"].values()]
    average = change["average"]
    return (
        f"{model}: averaged over {len(found)} language{'s' if len(found) > 1 else ''}, the mean activation went from "
        f"{MEAN.with_interval(before)} to {MEAN.with_interval(after)} (change "
        f"{MEAN.text(average['difference'], True)}, p {_equals(average['p_value'])}). It fell significantly "
        f"in {found.count('better')} of them and rose significantly in {found.count('worse')}."
    )


def _equals(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _figure(told: Told, languages: list[str]) -> Figure:
    """A point with its interval for each model, a row for each language, and the average on top."""
    looks = series(list(told), [model for model in told if model != BASE])
    rows: list[str | None] = [None, *languages]
    places = [0.0, *(at + 1.35 for at in range(len(languages)))]
    figure, axes = new_figure(0.9 + 0.34 * len(rows), 1)
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, language in zip(places, rows, strict=True):
        values = [_of(one, language)["mean"]["value"] for one in told.values()]
        axes.plot([min(values), max(values)], [place, place], color=GRID, linewidth=2, zorder=1)
        for at, (model, one) in enumerate(told.items()):
            mean, y = _of(one, language)["mean"], place + 0.22 * (at - (len(told) - 1) / 2)
            if mean["low"] is not None:
                axes.plot([mean["low"], mean["high"]], [y, y], color=INK, linewidth=1, solid_capstyle="butt", zorder=2)
            axes.scatter([mean["value"]], [y], s=34, linewidth=0, zorder=3, **looks[model])
    axes.set_yticks(places, [AVERAGE if one is None else language_name(one) for one in rows])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.axhline(0.675, color=GRID, linewidth=1)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlabel("mean activation")
    legend(figure, looks)
    return figure


def _language_table(told: Told, languages: list[str], paper: dict[str | None, tuple[float, float]]) -> Table:
    tuned: list[str | None] = [model for model in told if "change" in told[model]] or [None]
    several, compared = len(tuned) > 1, tuned != [None]
    columns = ["Language", *(["Variant"] if several else []), *(["Before", "After"] if compared else ["Mean"])]
    columns += ["Difference", "p adjusted", "Verdict"] if compared else []
    columns += ["Paper, before", "Paper, after"] if paper else []
    table = Table("Mean activation by language", "", [*columns, "Prompts"])
    for language in (None, *languages):
        for model in tuned:
            name = AVERAGE if language is None else language_name(language)
            row = [Cell(name, sort=name), *([Cell(model, sort=model)] if model and several else [])]
            row += [value_cell(MEAN, _of(told[one], language)["mean"]) for one in (BASE, model) if one]
            row += _change_cells(_of(told[model]["change"], language)) if model else []
            if paper:
                row += [Cell(number(one, 4), sort=one) for one in paper.get(language, (None, None))]
            count = _of(told[BASE], language)["num_prompts"]
            table.rows.append([*row, Cell(f"{count:,}", sort=count)])
    return table


def _change_cells(change: dict[str, Any]) -> list[Cell]:
    found = verdict(change, lower_is_better=True)
    p = change["p_adjusted"]
    return [
        Cell(
            MEAN.text(change["difference"], signed=True),
            MEAN.interval(change["low"], change["high"], signed=True),
            change["difference"],
        ),
        Cell(p_value(p), sort=p, note=f"before the adjustment {p_value(change['p_value'])}"),
        Cell(VERDICTS[found], sort=found, tone=found),
    ]


def _neuron_table(told: Told) -> Table:
    """Each neuron's mean over the languages, by model."""
    table = Table(
        "Mean activation by neuron", "", ["Neuron", *told, *(f"Change, {one}" for one in told if one != BASE)]
    )
    for at, (layer, index) in enumerate(told[BASE]["neurons"]):
        means = {model: one["average"]["neurons"][at] for model, one in told.items()}
        changes = [mean - means[BASE] for model, mean in means.items() if model != BASE]
        table.rows.append(
            [
                Cell(f"{layer} / {index}", sort=layer * 1e6 + index),
                *(Cell(MEAN.text(mean), sort=mean) for mean in means.values()),
                *(Cell(MEAN.text(change, signed=True), sort=change) for change in changes),
            ]
        )
    return table
