"""Retrieval by layer and language, and whether it predicts where tuning carries over (Figure 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from xgray.config import Experiment
from xgray.report.figures import INK, MUTED, VARIANT_COLORS, legend, new_figure, series
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import MISSING, number, p_value, percent
from xgray.report.sections import Section
from xgray.report.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Retrieval and transfer"
PUBLISHED_R = {
    "ai-forever/mGPT": 0.732,
    "bigscience/bloom-1b7": 0.59,
    "bigscience/bloom-7b1": 0.66,
    "meta-llama/Llama-2-7b-hf": 0.78,
}
"""Pearson's r between the change of EMT and retrieval, as the paper has it: of the mean cosine, entities left in."""

DEFINITIONS = {"accuracy": "Accuracy", "margin_accuracy": "Margin accuracy", "cosine": "Mean cosine"}
ENTITIES = {"corrected": "repaired", "released": "left in"}
VERDICTS = {"survives": "▲ survives", "reversed": "▼ reversed", "unclear": "not significant", "untested": "not tested"}
LOOKS = {
    name: {"facecolor": color, "hatch": ""} for name, color in zip(DEFINITIONS.values(), VARIANT_COLORS, strict=False)
}
CURVES = {"accuracy": ("accuracy", "margin_accuracy"), "cosine": ("cosine",)}
"""What shares a figure: cosines are near 1 where accuracies are near 0."""
NUM_COLUMNS = 4


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no retrieval."""
    done = {one["stage"] for one in files.manifests}
    if "retrieve" not in done:
        return None
    if reason := files.outdated("retrieve"):
        return Section("retrieve", TITLE, reason=reason)
    retrieval = (files.run / "retrieve").read_json("metrics.json")
    outdated = files.outdated("transfer")
    found = "transfer" in done and not outdated
    transfer = (files.run / "transfer").read_json("metrics.json") if found else None
    figures = {
        f"retrieval_{key}": (
            layer_curves(retrieval, shown),
            f"Curves of {' and '.join(DEFINITIONS[one].lower() for one in shown)} by layer, a panel for each language.",
        )
        for key, shown in CURVES.items()
    }
    if transfer:
        for definition, name in DEFINITIONS.items():
            drawn = scatter(retrieval, transfer, definition)
            if drawn is not None:
                figures[f"transfer_{definition}"] = (
                    drawn,
                    f"Scatter of {name.lower()} against the relative fall of EMT, a point for each language.",
                )
    context = {
        "retrieval": retrieval,
        "entities": ENTITIES[retrieval["entities"]],
        "truncated": sum(one["num_truncated"] for one in retrieval["texts"].values()),
        "curves": {key: DEFINITIONS[key] for key in CURVES},
        "scores": score_table(retrieval),
        "transfer": transfer,
        "outdated": outdated,
        "definitions": definition_table(transfer) if transfer else None,
        "panels": {key: DEFINITIONS[key] for key in DEFINITIONS if f"transfer_{key}" in figures},
        "missing": _missing(transfer) if transfer else [],
        "published": PUBLISHED_R.get(experiment.model.id),
    }
    return Section("retrieve", TITLE, context, figures)


def layer_curves(retrieval: dict[str, Any], shown: tuple[str, ...]) -> Figure:
    """Some definitions' scores by layer, a panel for each language, the most accurate language first."""
    languages, version = retrieval["languages"], retrieval["entities"]
    ordered = sorted(languages, key=lambda one: -languages[one][version]["accuracy"]["value"])
    num_rows = math.ceil(len(ordered) / NUM_COLUMNS)
    figure, grid = new_figure(0.7 + 1.25 * num_rows, num_rows, NUM_COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, language in zip(panels, ordered, strict=False):
        axes.set_title(language_name(language), fontsize=9)
        axes.grid(axis="y")
        for definition in shown:
            layers = languages[language][version][definition]["layers"]
            color, numbers = LOOKS[DEFINITIONS[definition]]["facecolor"], range(retrieval["num_layers"])
            axes.fill_between(numbers, layers["low"], layers["high"], color=color, alpha=0.25, linewidth=0)
            axes.plot(numbers, layers["value"], color=color, linewidth=1.4)
        axes.tick_params(labelsize=8)
    for axes in panels[len(ordered) :]:
        axes.set_axis_off()
    figure.supxlabel("layer (0: embeddings)", fontsize=9, color=INK)
    legend(figure, {DEFINITIONS[one]: LOOKS[DEFINITIONS[one]] for one in shown})
    return figure


def scatter(retrieval: dict[str, Any], transfer: dict[str, Any], definition: str) -> Figure | None:
    """Each language's score and fall of EMT with the fitted lines; None where no variant has a correlation."""
    version = retrieval["entities"]
    variants = {
        name: one
        for name, one in transfer["variants"].items()
        if one["definitions"][definition][version]["pearson"] is not None
    }
    if not variants:
        return None
    figure, axes = new_figure(3.6, 1)
    axes.grid(axis="both")
    looks = series([], list(transfer["variants"]))
    for at, (name, one) in enumerate(variants.items()):
        found, color = one["definitions"][definition][version], looks[name]["facecolor"]
        points = {code: retrieval["languages"][code][version][definition]["value"] for code in one["languages"]}
        falls = [100 * fall for fall in one["languages"].values()]
        axes.plot(points.values(), falls, marker="o", markersize=5, linewidth=0, color=color)
        ends = [min(points.values()), max(points.values())]
        axes.plot(ends, [100 * (found["slope"] * end + found["intercept"]) for end in ends], color=color, linewidth=1.4)
        if at == 0:
            # Above and below in turn from left to right: neighbours' labels do not meet.
            labelled = sorted(zip(points.values(), falls, points, strict=True))
            for place, (score, fall, code) in enumerate(labelled):
                where = (4, -9) if place % 2 else (4, 3)
                axes.annotate(code, (score, fall), where, textcoords="offset points", fontsize=8, color=MUTED)
    axes.set_xlabel(f"{DEFINITIONS[definition].lower()}, averaged over layers")
    axes.set_ylabel("relative fall of EMT, %")
    legend(figure, {name: looks[name] for name in variants})
    return figure


def score_table(retrieval: dict[str, Any]) -> Table:
    """Every language's scores under each definition, in both versions of the texts."""
    first = retrieval["entities"]
    second = next(version for version in ENTITIES if version != first)
    columns = ["Language", "With entities", "Accuracy", "X → en", "en → X", "Margin accuracy", "Mean cosine"]
    columns += [f"{name}, {ENTITIES[second]}" for name in DEFINITIONS.values()]
    table = Table("Retrieval by language", "", columns)
    for language, own in [*retrieval["languages"].items(), ("", retrieval["average"])]:
        told = retrieval["texts"].get(language)
        cells = [Cell(language_name(language) if language else "Average", sort=language_name(language) or None)]
        cells.append(Cell(str(told["num_with_entities"]), sort=told["num_with_entities"]) if told else Cell(""))
        for metric in ("accuracy", "accuracy_to_en", "accuracy_from_en", "margin_accuracy", "cosine"):
            cells.append(_cell(own[first][metric]))
        cells += [_cell(own[second][definition]) for definition in DEFINITIONS]
        table.rows.append(cells)
    return table


def definition_table(transfer: dict[str, Any]) -> Table:
    """Every variant's correlations under every definition of the score."""
    columns = ["Score", "Entities", "Variant", "Languages", "Pearson r", "p", "Spearman ρ", "p"]
    columns += ["Left-out error", "Of the mean", "Verdict"]
    table = Table("Correlation with the relative fall of EMT", "", columns)
    for variant, own in transfer["variants"].items():
        for definition, name in DEFINITIONS.items():
            for version, entities in ENTITIES.items():
                found = own["definitions"][definition][version]
                reason = found.get("reason", "")
                cells = [Cell(name, sort=name), Cell(entities, sort=entities), Cell(variant, sort=variant)]
                cells.append(Cell(str(len(own["languages"])), sort=len(own["languages"])))
                for key in ("pearson", "spearman"):
                    if found[key] is None:
                        cells += [Cell(MISSING, reason=reason), Cell(MISSING, reason=reason)]
                        continue
                    p = found[key]["p_value"]
                    cells += [_cell(found[key], 2), Cell(p_value(p), sort=p)]
                for key in ("prediction_error", "prediction_error_of_mean"):
                    cells.append(Cell(percent(found[key]), sort=found[key], reason=reason))
                tone = {"survives": "better", "reversed": "worse"}.get(found["verdict"], "")
                table.rows.append([*cells, Cell(VERDICTS[found["verdict"]], sort=found["verdict"], tone=tone)])
    return table


def _cell(measured: dict[str, Any], digits: int = 3) -> Cell:
    value, low, high = (number(measured[key], digits) for key in ("value", "low", "high"))
    return Cell(value, f"[{low}, {high}]", measured["value"])


def _missing(transfer: dict[str, Any]) -> list[str]:
    """For each variant, the languages without a point, and why."""
    return [
        f"{variant}: {len(own['missing'])} left out: "
        + "; ".join(f"{language_name(code)} ({reason})" for code, reason in own["missing"].items())
        for variant, own in transfer["variants"].items()
        if own["missing"]
    ]
