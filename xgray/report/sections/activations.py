"""The section about activations: the source neurons' mean activation by language and model (the paper's Figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgray.config import BASE, Experiment
from xgray.config.stages import model_names
from xgray.report.figures import GRID, INK, MUTED, Drawing, language_axis, legend, model_looks, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import Metric, number, p_value
from xgray.report.published import FIGURE_3
from xgray.report.sections import Section
from xgray.report.summary import verdict
from xgray.report.tables import Cell, Table, count_cell, value_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xgray.mechanism.metrics_file import ActivationChange, ActivationChanges, ActivationsMetrics, NeuronMeans

    ModelActivations = dict[str, ActivationsMetrics]
    """``activations/{model}/metrics.json`` of each model, the base model first."""

TITLE = "Activations of the sources"
MEAN = Metric("Mean activation", digits=4)
VERDICTS = {"better": "▼ lower", "worse": "▲ higher", "unchanged": "not significant"}


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no activations of the base model."""
    by_model = {model: files.stage_metrics(f"activations/{model}") for model in model_names(experiment)}
    activations: ModelActivations = {model: metrics for model, metrics in by_model.items() if metrics is not None}
    if BASE not in activations:
        return None
    base = activations[BASE]
    if reason := files.stale_reason(*(f"activations/{model}" for model in activations)) or base.get("reason"):
        return Section("activations", TITLE, reason=reason)
    languages = _sorted_languages(activations)
    published = FIGURE_3.get(experiment.model.id, {})
    is_listed = experiment.activations is not None and experiment.activations.neurons is not None
    context = {
        "answers": [_answer(model, base, metrics) for model, metrics in activations.items() if "change" in metrics],
        "num_neurons": len(base["neurons"]),
        "origin": "listed in the experiment file" if is_listed else "found by the stage vectors as actual sources",
        "new_tokens": base["new_tokens"],
        "confidence": base["confidence"],
        "num_prompts": base["average"]["num_prompts"],
        "num_tokens": {model: metrics["average"]["num_tokens"] for model, metrics in activations.items()},
        "languages": _language_table(activations, languages, published),
        "neurons": _neuron_table(activations),
        "is_published": bool(published),
    }
    description = f"Mean activation by language for {' and '.join(activations)}, with intervals."
    return Section(
        "activations", TITLE, context, {"activations": Drawing(_figure(activations, languages), description)}
    )


def _means(metrics: ActivationsMetrics, language: str | None) -> NeuronMeans:
    """Return the mean activations of a language; of the average for None."""
    return metrics["average"] if language is None else metrics["languages"][language]


def _change(changes: ActivationChanges, language: str | None) -> ActivationChange:
    """Return the change of a language; of the average for None."""
    return changes["average"] if language is None else changes["languages"][language]


def _sorted_languages(activations: ModelActivations) -> list[str]:
    """Sort the languages by the first variant's change, the largest fall first; by name where there is no variant."""
    languages = sorted(activations[BASE]["languages"], key=language_name)
    for metrics in activations.values():
        if "change" in metrics:
            changes = metrics["change"]["languages"]
            return sorted(languages, key=lambda language: changes[language]["difference"])
    return languages


def _answer(model: str, base: ActivationsMetrics, tuned: ActivationsMetrics) -> str:
    changes = tuned["change"]
    verdicts = [verdict(change, lower_is_better=True) for change in changes["languages"].values()]
    average, p = changes["average"], p_value(changes["average"]["p_value"])
    return (
        f"{model}: averaged over {len(verdicts)} language{'s' if len(verdicts) > 1 else ''}, the mean activation went "
        f"from {MEAN.with_interval(base['average']['mean'])} to {MEAN.with_interval(tuned['average']['mean'])} "
        f"(change {MEAN.text(average['difference'], True)}, p {p if p.startswith('<') else f'= {p}'}). It fell "
        f"significantly in {verdicts.count('better')} of them and rose significantly in {verdicts.count('worse')}."
    )


def _figure(activations: ModelActivations, languages: list[str]) -> Figure:
    """Draw a row for the average and for each language, with each model's mean and its interval."""
    looks = model_looks(list(activations), [model for model in activations if model != BASE])
    rows: list[str | None] = [None, *languages]
    figure, axes = new_figure(0.9 + 0.34 * len(rows), 1)
    axes.axvline(0, color=MUTED, linewidth=1)
    for position, language in zip(language_axis(axes, languages), rows, strict=True):
        means = {model: _means(metrics, language)["mean"] for model, metrics in activations.items()}
        values = [mean["value"] for mean in means.values() if mean["value"] is not None]
        axes.plot([min(values), max(values)], [position, position], color=GRID, linewidth=2, zorder=1)
        for index, (model, mean) in enumerate(means.items()):
            y = position + 0.22 * (index - (len(means) - 1) / 2)
            if mean["low"] is not None:
                axes.plot([mean["low"], mean["high"]], [y, y], color=INK, linewidth=1, solid_capstyle="butt", zorder=2)
            axes.scatter([mean["value"]], [y], s=34, linewidth=0, zorder=3, **looks[model])
    axes.set_xlabel("mean activation")
    legend(figure, looks)
    return figure


def _language_table(
    activations: ModelActivations, languages: list[str], published: dict[str | None, tuple[float, float]]
) -> Table:
    variants: list[str | None] = [model for model in activations if "change" in activations[model]] or [None]
    names_variant, is_compared = len(variants) > 1, variants != [None]
    columns = ["Language", *(["Variant"] if names_variant else [])]
    columns += ["Before", "After", "Difference", "p adjusted", "Verdict"] if is_compared else ["Mean"]
    columns += ["Paper, before", "Paper, after"] if published else []
    table = Table("Mean activation by language", "", [*columns, "Prompts"])
    for language in (None, *languages):
        name = "Average" if language is None else language_name(language)
        for variant in variants:
            row = [Cell(name, sort=name), *([Cell(variant, sort=variant)] if variant and names_variant else [])]
            models = [model for model in (BASE, variant) if model]
            row += [value_cell(MEAN, _means(activations[model], language)["mean"]) for model in models]
            row += _change_cells(_change(activations[variant]["change"], language)) if variant else []
            if published:
                row += [Cell(number(value, 4), sort=value) for value in published.get(language, (None, None))]
            table.rows.append([*row, count_cell(_means(activations[BASE], language)["num_prompts"])])
    return table


def _change_cells(change: ActivationChange) -> list[Cell]:
    found = verdict(change, lower_is_better=True)
    interval = MEAN.interval(change["low"], change["high"], signed=True)
    p, unadjusted = change["p_adjusted"], f"unadjusted p {p_value(change['p_value'])}"
    return [
        Cell(MEAN.text(change["difference"], signed=True), interval, change["difference"]),
        Cell(p_value(p), sort=p, note=unadjusted),
        Cell(VERDICTS[found], sort=found, tone=found),
    ]


def _neuron_table(activations: ModelActivations) -> Table:
    """Return the table of each neuron's mean over the languages, by model."""
    variants = [model for model in activations if model != BASE]
    columns = ["Neuron", *activations, *(f"Change, {variant}" for variant in variants)]
    table = Table("Mean activation by neuron", "", columns)
    for number_in_list, (layer, index) in enumerate(activations[BASE]["neurons"]):
        means = {model: metrics["average"]["neurons"][number_in_list] for model, metrics in activations.items()}
        changes = [means[variant] - means[BASE] for variant in variants]
        table.rows.append(
            [
                Cell(f"{layer} / {index}", sort=layer * 1e6 + index),
                *(Cell(MEAN.text(mean), sort=mean) for mean in means.values()),
                *(Cell(MEAN.text(change, signed=True), sort=change) for change in changes),
            ]
        )
    return table
