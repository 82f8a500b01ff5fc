"""The section about retrieval by layer and language, and how it goes with the change of toxicity (Figure 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from xgray.config import Experiment
from xgray.report import published
from xgray.report.figures import INK, MUTED, VARIANT_COLORS, Drawing, legend, model_looks, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import MISSING, number, p_value, percent
from xgray.report.sections import Section
from xgray.report.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xgray.mechanism.metrics_file import (
        Correlation,
        CorrelationValue,
        EntityVersion,
        RetrievalScore,
        RetrieveMetrics,
        TransferMetrics,
    )

TITLE = "Retrieval and transfer"
DEFINITIONS = {"accuracy": "Accuracy", "margin_accuracy": "Margin accuracy", "cosine": "Mean cosine"}
"""The definitions of the retrieval score, with their names."""
ENTITIES: dict[EntityVersion, str] = {"corrected": "repaired", "released": "left in"}
"""The two versions of prompts with HTML entities, with their names."""
VERDICTS = {"survives": "▲ survives", "reversed": "▼ reversed", "unclear": "not significant", "untested": "not tested"}
LOOKS = {
    name: {"facecolor": color, "hatch": ""} for name, color in zip(DEFINITIONS.values(), VARIANT_COLORS, strict=False)
}
CURVES = {"accuracy": ("accuracy", "margin_accuracy"), "cosine": ("cosine",)}
"""The definitions that share a figure: cosines are near 1 where accuracies are near 0."""
NUM_PANEL_COLUMNS = 4


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no finished retrieval."""
    retrieval: RetrieveMetrics | None = files.stage_metrics("retrieve")
    if retrieval is None:
        return None
    if reason := files.stale_reason("retrieve"):
        return Section("retrieve", TITLE, reason=reason)
    stale_reason = files.stale_reason("transfer")
    transfer: TransferMetrics | None = None if stale_reason else files.stage_metrics("transfer")
    figures = {}
    for key, definitions in CURVES.items():
        names = " and ".join(DEFINITIONS[definition].lower() for definition in definitions)
        description = f"Curves of {names} by layer, a panel for each language."
        figures[f"retrieval_{key}"] = Drawing(layer_curves(retrieval, definitions), description)
    for definition, name in DEFINITIONS.items():
        figure = scatter(retrieval, transfer, definition) if transfer else None
        if figure is not None:
            description = f"Scatter of {name.lower()} against the relative fall of EMT, a point for each language."
            figures[f"transfer_{definition}"] = Drawing(figure, description)
    context = {
        "retrieval": retrieval,
        "entities": ENTITIES[retrieval["entities"]],
        "num_truncated": sum(texts["num_truncated"] for texts in retrieval["texts"].values()),
        "curves": {key: DEFINITIONS[key] for key in CURVES},
        "scores": score_table(retrieval),
        "transfer": transfer,
        "stale_reason": stale_reason,
        "correlations": correlation_table(transfer) if transfer else None,
        "panels": {key: name for key, name in DEFINITIONS.items() if f"transfer_{key}" in figures},
        "missing": _missing(transfer) if transfer else [],
        **_published(experiment.model.id),
    }
    return Section("retrieve", TITLE, context, figures)


def _published(model_id: str) -> dict[str, object]:
    """Return the paper's r of this model, and of all its models, as text."""
    texts = {model: f"{r:g}".removeprefix("0") for model, r in published.FIGURE_4.items()}
    return {
        "published": texts.get(model_id),
        "published_models": [f"{published.TABLE_2[model].name} {r}" for model, r in texts.items()],
        "published_num_languages": published.FIGURE_4_NUM_LANGUAGES,
    }


def layer_curves(retrieval: RetrieveMetrics, definitions: tuple[str, ...]) -> Figure:
    """Draw the scores of some definitions by layer, a panel for each language, the highest accuracy first."""
    languages, version = retrieval["languages"], retrieval["entities"]
    ordered = sorted(languages, key=lambda language: -languages[language][version]["accuracy"]["value"])
    num_rows = math.ceil(len(ordered) / NUM_PANEL_COLUMNS)
    shape = num_rows, NUM_PANEL_COLUMNS
    figure, grid = new_figure(0.7 + 1.25 * num_rows, *shape, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    numbers = range(retrieval["num_layers"])
    for axes, language in zip(panels, ordered, strict=False):
        axes.set_title(language_name(language), fontsize=9)
        axes.grid(axis="y")
        for definition in definitions:
            curve = languages[language][version][definition]["layers"]
            color = LOOKS[DEFINITIONS[definition]]["facecolor"]
            axes.fill_between(numbers, curve["low"], curve["high"], color=color, alpha=0.25, linewidth=0)
            axes.plot(numbers, curve["value"], color=color, linewidth=1.4)
        axes.tick_params(labelsize=8)
    for axes in panels[len(ordered) :]:
        axes.set_axis_off()
    figure.supxlabel("layer (0: embeddings)", fontsize=9, color=INK)
    legend(figure, {DEFINITIONS[definition]: LOOKS[DEFINITIONS[definition]] for definition in definitions})
    return figure


def scatter(retrieval: RetrieveMetrics, transfer: TransferMetrics, definition: str) -> Figure | None:
    """Draw each language's score and fall of EMT with the fitted lines; None where no variant has a correlation."""
    version = retrieval["entities"]
    correlations = {
        variant: results["definitions"][definition][version] for variant, results in transfer["variants"].items()
    }
    variants = [variant for variant, correlation in correlations.items() if correlation["pearson"] is not None]
    if not variants:
        return None
    figure, axes = new_figure(3.6, 1)
    axes.grid(axis="both")
    looks = model_looks([], list(transfer["variants"]))
    for variant in variants:
        color, falls = looks[variant]["facecolor"], transfer["variants"][variant]["languages"]
        scores = [retrieval["languages"][language][version][definition]["value"] for language in falls]
        falls_in_percent = [100 * fall for fall in falls.values()]
        axes.plot(scores, falls_in_percent, marker="o", markersize=5, linewidth=0, color=color)
        slope, intercept = correlations[variant]["slope"], correlations[variant]["intercept"]
        assert slope is not None
        assert intercept is not None
        ends = [min(scores), max(scores)]
        axes.plot(ends, [100 * (slope * end + intercept) for end in ends], color=color, linewidth=1.4)
        if variant == variants[0]:
            # Labels alternate between above and below, so that those of neighbours do not overlap.
            labelled = sorted(zip(scores, falls_in_percent, falls, strict=True))
            for position, (score, fall, language) in enumerate(labelled):
                offset = (4, -9) if position % 2 else (4, 3)
                axes.annotate(language, (score, fall), offset, textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_xlabel(f"{DEFINITIONS[definition].lower()}, averaged over layers")
    axes.set_ylabel("relative fall of EMT, %")
    legend(figure, {variant: looks[variant] for variant in variants})
    return figure


def score_table(retrieval: RetrieveMetrics) -> Table:
    """Return the table of every language's scores under each definition, for both versions of the prompts."""
    version = retrieval["entities"]
    other_version = next(other for other in ENTITIES if other != version)
    columns = ["Language", "With entities", "Accuracy", "X → en", "en → X", "Margin accuracy", "Mean cosine"]
    columns += [f"{name}, {ENTITIES[other_version]}" for name in DEFINITIONS.values()]
    table = Table("Retrieval by language", "", columns)
    metrics = ("accuracy", "accuracy_to_en", "accuracy_from_en", "margin_accuracy", "cosine")
    for language, scores in [*retrieval["languages"].items(), ("", retrieval["average"])]:
        texts = retrieval["texts"].get(language)
        table.rows.append(
            [
                Cell(language_name(language), sort=language_name(language)) if language else Cell("Average"),
                Cell(str(texts["num_with_entities"]), sort=texts["num_with_entities"]) if texts else Cell(""),
                *(_cell(scores[version][metric]) for metric in metrics),
                *(_cell(scores[other_version][definition]) for definition in DEFINITIONS),
            ]
        )
    return table


def correlation_table(transfer: TransferMetrics) -> Table:
    """Return the table of every variant's correlations under every definition of the score."""
    columns = ["Score", "Entities", "Variant", "Languages", "Pearson r", "p", "Spearman ρ", "p"]
    columns += ["Left-out error", "Error of the mean", "Verdict"]
    table = Table("Correlation with the relative fall of EMT", "", columns)
    for variant, results in transfer["variants"].items():
        num_languages = len(results["languages"])
        for definition, name in DEFINITIONS.items():
            for version, entities in ENTITIES.items():
                row = [Cell(name, sort=name), Cell(entities, sort=entities), Cell(variant, sort=variant)]
                row += [Cell(str(num_languages), sort=num_languages)]
                table.rows.append([*row, *_correlation_cells(results["definitions"][definition][version])])
    return table


def _correlation_cells(correlation: Correlation) -> list[Cell]:
    reason = correlation.get("reason", "")
    cells = []
    for coefficient in (correlation["pearson"], correlation["spearman"]):
        if coefficient is None:
            cells += [Cell(MISSING, reason=reason), Cell(MISSING, reason=reason)]
        else:
            p = coefficient["p_value"]
            cells += [_cell(coefficient, 2), Cell(p_value(p), sort=p)]
    for error in (correlation["prediction_error"], correlation["prediction_error_of_mean"]):
        cells.append(Cell(percent(error), sort=error, reason=reason))
    tone = {"survives": "better", "reversed": "worse"}.get(correlation["verdict"], "")
    return [*cells, Cell(VERDICTS[correlation["verdict"]], sort=correlation["verdict"], tone=tone)]


def _cell(measured: RetrievalScore | CorrelationValue, digits: int = 3) -> Cell:
    low, high = number(measured["low"], digits), number(measured["high"], digits)
    return Cell(number(measured["value"], digits), f"[{low}, {high}]", measured["value"])


def _missing(transfer: TransferMetrics) -> list[str]:
    """Return a sentence for each variant about the languages without a point, and why."""
    return [
        f"{variant}: {len(results['missing'])} left out: "
        + "; ".join(f"{language_name(language)} ({reason})" for language, reason in results["missing"].items())
        for variant, results in transfer["variants"].items()
        if results["missing"]
    ]
