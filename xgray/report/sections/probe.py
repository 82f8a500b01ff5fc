"""The report's section about the probe: how well it tells toxic texts from others, in English and elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xgray.config import Experiment
from xgray.report.figures import BASE_COLOR, INK, MUTED, VARIANT_COLORS, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import MISSING, Metric, number, percent
from xgray.report.sections import Section
from xgray.report.tables import Cell, Table
from xgray.runs.manifest import MANIFEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Probe"
AUC = Metric("auc", "AUC", "The chance that a toxic text stands above a benign one.", lower_is_better=False)
KEPT = {"corrected": "the last one", "released": "the one of lowest validation loss, which flatters the validation"}
PUBLISHED = {"ai-forever/mGPT": ("94.31 %", ".862")}
"""Validation accuracy and test AUC of the paper's probe on Jigsaw, by model."""


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """The section; None where the run has no finished probe."""
    folder = files.run / "probe"
    if not folder.exists(MANIFEST):
        return None
    if reason := files.outdated("probe"):
        return Section("probe", TITLE, reason=reason)
    told = folder.read_json("metrics.json")
    drawn = {
        "probe-calibration": (calibration(told), "Share of toxic texts by the probability that the probe gives them.")
    }
    if told["transfer"]:
        drawn["probe-transfer"] = (transfer(told), "AUC of the English probe by language, with intervals.")
    context = {
        "told": told,
        "facts": _facts(told),
        "table": _table(told),
        "published": PUBLISHED.get(experiment.model.id),
    }
    return Section("probe", TITLE, context, drawn)


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    validation = told["validation"]
    accuracy = validation["accuracy"]
    num_validate = validation["num_toxic"] + validation["num_benign"]
    return [
        (
            "Validation accuracy",
            f"{percent(accuracy['value'])} [{percent(accuracy['low'])}, {percent(accuracy['high'])}]; "
            f"always the larger class: {percent(validation['majority'])}",
        ),
        ("Validation AUC", AUC.with_interval(validation["auc"])),
        ("Expected calibration error", number(validation["calibration_error"])),
        ("Validation texts", f"{num_validate:,}, {validation['num_toxic']:,} of them toxic"),
        ("Training texts", f"{told['num_fit']:,} of {told['num_texts']:,} from {told['data']}"),
        ("Shortened texts", f"{told['num_truncated']:,}"),
        ("Learning rate", f"{told['learning_rate']:g}, {len(told['train_loss'])} epochs"),
        ("Kept", f"epoch {told['epoch']}, {KEPT[told['protocol']]}"),
        ("Training loss", f"{number(told['train_loss'][0])} in the first epoch, {number(told['train_loss'][-1])} last"),
    ]


def _by_auc(told: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(told["transfer"].items(), key=lambda one: -(one[1]["auc"] or 0))


def _table(told: dict[str, Any]) -> Table:
    table = Table("Probe by language", "", ["Language", "AUC", "Accuracy", "Toxic texts", "Benign texts"])
    for code, one in _by_auc(told):
        value, low, high = one["auc"], one["low"], one["high"]
        auc = (
            Cell(MISSING, reason=one["reason"])
            if value is None
            else Cell(number(value), AUC.interval(low, high), value)
        )
        counts = [Cell(f"{one[key]:,}", sort=one[key]) for key in ("num_toxic", "num_benign")]
        right = Cell(percent(one["accuracy"]), sort=one["accuracy"])
        table.rows.append([Cell(language_name(code), sort=language_name(code)), auc, right, *counts])
    return table


def transfer(told: dict[str, Any]) -> Figure:
    """The AUC of each language with its interval, the highest first; English, which it was trained on, stands out."""
    rows = [(code, one) for code, one in _by_auc(told) if one["auc"] is not None]
    figure, axes = new_figure(1.0 + 0.3 * len(rows), 1)
    for y, (code, one) in enumerate(rows):
        color = BASE_COLOR if code == "en" else VARIANT_COLORS[0]
        axes.plot([one["low"], one["high"]], [y, y], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(one["auc"], y, color=color, marker="o", markersize=6)
    axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=":")
    axes.annotate("guessing", (0.5, 1), (3, 2), ("data", "axes fraction"), "offset points", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(rows)), [language_name(code) for code, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(min([0.45, *(one["low"] - 0.02 for _, one in rows)]), 1.0)
    axes.set_xlabel("AUC")
    return figure


def calibration(told: dict[str, Any]) -> Figure:
    """Share of toxic texts against the predicted probability, with the number of texts at each point."""
    figure, axes = new_figure(3.2, 1)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    bins = told["validation"]["bins"]
    x, y = [one["mean_probability"] for one in bins], [one["share_toxic"] for one in bins]
    axes.plot(x, y, color=VARIANT_COLORS[0], marker="o", markersize=6, linewidth=1.2)
    for one in bins:
        place = one["mean_probability"], one["share_toxic"]
        axes.annotate(f"{one['num_texts']:,}", place, (6, -11), textcoords="offset points", fontsize=8, color=INK)
    axes.grid(axis="both")
    axes.set_xlim(-0.02, 1.05)
    axes.set_ylim(-0.06, 1.05)
    axes.set_xlabel("probability of toxic, mean of a tenth of the scale")
    axes.set_ylabel("share of toxic texts")
    return figure
