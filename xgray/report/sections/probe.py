"""The section about the probe: how well it separates toxic texts from others, in English and in other languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgray.config import Experiment
from xgray.report.figures import BASE_COLOR, INK, MUTED, VARIANT_COLORS, Drawing, new_figure
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import MISSING, Metric, number, percent
from xgray.report.published import PROBES
from xgray.report.sections import Section
from xgray.report.tables import Cell, Table, count_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xgray.mechanism.metrics_file import CalibrationBin, ProbeMetrics
    from xgray.stats.values import LanguageAuc

TITLE = "Probe"
AUC = Metric("AUC", lower_is_better=False)
KEPT_EPOCH = {
    "corrected": "the last one",
    "released": "the one of lowest validation loss, which makes the validation look better",
}


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None where the run has no finished probe."""
    probe: ProbeMetrics | None = files.stage_metrics("probe")
    if probe is None:
        return None
    if reason := files.stale_reason("probe"):
        return Section("probe", TITLE, reason=reason)
    figures = {
        "probe-calibration": Drawing(
            calibration_figure(probe["validation"]["bins"]),
            "Share of toxic texts by the probability that the probe gives them.",
        )
    }
    languages = sorted(probe["transfer"].items(), key=lambda item: -(item[1]["auc"] or 0))
    if languages:
        description = "AUC of the English probe by language, with intervals."
        figures["probe-transfer"] = Drawing(transfer_figure(languages), description)
    context = {
        "probe": probe,
        "facts": _facts(probe),
        "table": _table(languages),
        "published": PROBES.get(experiment.model.id),
    }
    return Section("probe", TITLE, context, figures)


def _facts(probe: ProbeMetrics) -> list[tuple[str, str]]:
    validation, losses = probe["validation"], probe["train_loss"]
    accuracy = validation["accuracy"]
    num_validation = validation["num_toxic"] + validation["num_benign"]
    return [
        (
            "Validation accuracy",
            f"{percent(accuracy['value'])} [{percent(accuracy['low'])}, {percent(accuracy['high'])}]; "
            f"always answering the larger class: {percent(validation['majority'])}",
        ),
        ("Validation AUC", AUC.with_interval(validation["auc"])),
        ("Expected calibration error", number(validation["calibration_error"])),
        ("Validation texts", f"{num_validation:,}, {validation['num_toxic']:,} of them toxic"),
        ("Training texts", f"{probe['num_fit']:,} of {probe['num_texts']:,} from {probe['data']}"),
        ("Truncated texts", f"{probe['num_truncated']:,}"),
        ("Learning rate", f"{probe['learning_rate']:g}, {len(losses)} epochs"),
        ("Kept epoch", f"epoch {probe['epoch']}, {KEPT_EPOCH[probe['protocol']]}"),
        ("Training loss", f"{number(losses[0])} in the first epoch, {number(losses[-1])} in the last"),
    ]


def _table(languages: list[tuple[str, LanguageAuc]]) -> Table:
    table = Table("Probe by language", "", ["Language", "AUC", "Accuracy", "Toxic texts", "Benign texts"])
    for language, measured in languages:
        value = measured["auc"]
        if value is None:
            auc = Cell(MISSING, reason=measured["reason"])
        else:
            auc = Cell(number(value), AUC.interval(measured["low"], measured["high"]), value)
        table.rows.append(
            [
                Cell(language_name(language), sort=language_name(language)),
                auc,
                Cell(percent(measured["accuracy"]), sort=measured["accuracy"]),
                count_cell(measured["num_toxic"]),
                count_cell(measured["num_benign"]),
            ]
        )
    return table


def transfer_figure(languages: list[tuple[str, LanguageAuc]]) -> Figure:
    """Draw the AUC of each language with its interval, in the given order; English, the probe's language, is grey."""
    rows = [(language, measured) for language, measured in languages if measured["auc"] is not None]
    figure, axes = new_figure(1.0 + 0.3 * len(rows), 1)
    for y, (language, measured) in enumerate(rows):
        color = BASE_COLOR if language == "en" else VARIANT_COLORS[0]
        axes.plot([measured["low"], measured["high"]], [y, y], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(measured["auc"], y, color=color, marker="o", markersize=6)
    axes.axvline(0.5, color=MUTED, linewidth=1, linestyle=":")
    axes.annotate("guessing", (0.5, 1), (3, 2), ("data", "axes fraction"), "offset points", fontsize=8, color=MUTED)
    axes.set_yticks(range(len(rows)), [language_name(language) for language, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(min([0.45, *(low - 0.02 for _, measured in rows if (low := measured["low"]) is not None)]), 1.0)
    axes.set_xlabel("AUC")
    return figure


def calibration_figure(bins: list[CalibrationBin]) -> Figure:
    """Draw the share of toxic texts against the predicted probability, with the number of texts at each point."""
    figure, axes = new_figure(3.2, 1)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    x, y = [texts["mean_probability"] for texts in bins], [texts["share_toxic"] for texts in bins]
    axes.plot(x, y, color=VARIANT_COLORS[0], marker="o", markersize=6, linewidth=1.2)
    for texts, point in zip(bins, zip(x, y, strict=True), strict=True):
        axes.annotate(f"{texts['num_texts']:,}", point, (6, -11), textcoords="offset points", fontsize=8, color=INK)
    axes.grid(axis="both")
    axes.set_xlim(-0.02, 1.05)
    axes.set_ylim(-0.06, 1.05)
    axes.set_xlabel("predicted probability of toxic, mean of each bin")
    axes.set_ylabel("share of toxic texts")
    return figure
