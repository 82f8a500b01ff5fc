"""The section about what several scorers say of the same completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgray.config import Experiment
from xgray.evaluate.metrics_file import TOXICITY_METRICS, MetricName
from xgray.report.figures import (
    INK,
    MUTED,
    VARIANT_COLORS,
    Drawing,
    language_axis,
    legend,
    new_figure,
)
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, MISSING, Metric
from xgray.report.sections import Section
from xgray.report.summary import finding_in_words, finding_label, robustness_in_words, verdict
from xgray.report.tables import UNVALIDATED, Cell, Table, count_cell, value_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xgray.evaluate.robustness_file import Finding, RobustnessMetrics
    from xgray.stats.values import MetricChange, MetricValue

KEY, TITLE = "robustness", "Under every scorer"
MARKERS = ("o", "s", "D", "^", "v", "P")
AGREEMENT_CAPTION = (
    "Over the completions of all models that both have a score of. Spearman is the rank correlation of their scores; "
    "prompts are resampled with all of their completions."
)


def make(files: RunFiles, experiment: Experiment) -> Section | None:
    """Return the section; None for a run with one scorer."""
    if files.stage_metrics("robustness") is None:
        return None
    metrics = files.robustness
    if metrics is None:
        return Section(KEY, TITLE, reason=(files.stale_reason("robustness") or "").rstrip("."))
    variants, figures = list(metrics["findings"]), _drawings(metrics)
    context = {
        "answers": [_named(variants, variant) + robustness_in_words(metrics, variant) for variant in variants],
        "scorers": _scorer_table(metrics),
        "tables": [_finding_table(metrics, name) for name in TOXICITY_METRICS],
        "agreement": _agreement_table(metrics),
        "drawings": list(figures),
        "compares": bool(variants),
    }
    return Section(KEY, TITLE, context, figures)


def _named(variants: list[str], variant: str) -> str:
    return f"{variant}: " if len(variants) > 1 else ""


def _scorer_table(metrics: RobustnessMetrics) -> Table:
    caption = "Every scorer scored the same completions. The first one is that of all other tables."
    table = Table("Scorers", caption, ["Scorer", "Kind", "Version", "Not validated, scored", "Not validated, left out"])
    for name, facts in metrics["scorers"].items():
        languages = [
            Cell(", ".join(map(language_name, facts[key])) or "none", sort=len(facts[key]))
            for key in ("unvalidated", "not_scored")
        ]
        table.rows.append([Cell(name, sort=name), Cell(facts["scorer"]), Cell(facts["version"]), *languages])
    return table


def _finding_table(metrics: RobustnessMetrics, name: MetricName) -> Table:
    """Return each scorer's change of a metric by language, and under which scorers it is significant."""
    metric = METRICS[name]
    variants: list[str | None] = [*metrics["findings"]]
    scorers = list(metrics["scorers"])
    unit = f" ({metric.unit})" if metric.unit else ""
    columns = ["Language", *(["Variant"] if len(variants) > 1 else []), *(f"{scorer}{unit}" for scorer in scorers)]
    table = Table(metric.title, metric.meaning, [*columns, *(["Significant under"] if variants else [])])
    for language in [None, *metrics["languages"]]:
        title = "Average" if language is None else language_name(language)
        for variant in variants or [None]:
            row = [Cell(title, sort=title), *([Cell(variant, sort=variant)] if variant and len(variants) > 1 else [])]
            if variant is None:
                row += [_value_cell(metrics, metric, name, scorer, language) for scorer in scorers]
            else:
                row += [_change_cell(metrics, metric, name, scorer, variant, language) for scorer in scorers]
                found = metrics["findings"][variant][name]
                row.append(_finding_cell(found["average"] if language is None else found["languages"].get(language)))
            table.rows.append(row)
    return table


def _finding_cell(finding: Finding | None) -> Cell:
    if finding is None or finding["holds"] == "untested":
        return Cell(MISSING, reason="no scorer has scores of both models")
    tones = {"all": "better" if finding["fell"] else "worse", "one": "weak", "contradicted": "weak"}
    text, tone = finding_label(finding), tones.get(finding["holds"], "")
    return Cell(text, sort=text, note=finding_in_words(finding), tone=tone)


def _value(metrics: RobustnessMetrics, name: MetricName, scorer: str, language: str | None) -> MetricValue | None:
    """Return the base model's value under a scorer, or that of the first model where there is no base model."""
    values = next(iter(metrics["models"][scorer].values()))
    return values["average"][name] if language is None else values["languages"].get(language, {}).get(name)


def _value_cell(
    metrics: RobustnessMetrics, metric: Metric, name: MetricName, scorer: str, language: str | None
) -> Cell:
    value = _value(metrics, name, scorer, language)
    return Cell(MISSING, reason="no completions") if value is None else value_cell(metric, value)


def _change(
    metrics: RobustnessMetrics, name: MetricName, scorer: str, variant: str, language: str | None
) -> MetricChange | None:
    changes = metrics["comparisons"][scorer][variant]
    return changes["average"].get(name) if language is None else changes["languages"].get(language, {}).get(name)


def _change_cell(
    metrics: RobustnessMetrics, metric: Metric, name: MetricName, scorer: str, variant: str, language: str | None
) -> Cell:
    """Return a scorer's difference, in the tone of its verdict; marked where the scorer was not validated."""
    change = _change(metrics, name, scorer, variant, language)
    facts = metrics["scorers"][scorer]
    if change is None or change["difference"] is None:
        left_out = language in facts["not_scored"]
        reason = f"{scorer} was not validated in it" if left_out else f"{scorer} has no score of both models"
        return Cell(MISSING, reason=reason)
    found = verdict(change, metric.lower_is_better)
    ends = metric.interval(change["low"], change["high"], signed=True)
    mark = f" {UNVALIDATED}" if language in facts["unvalidated"] else ""
    before, after = (metric.text(change[side]["value"]) for side in ("before", "after") if side in change)
    note = f"from {before} to {after}"
    text = metric.text(change["difference"], signed=True) + mark
    return Cell(text, ends, change["difference"], note=note, tone=found if found in ("better", "worse") else "")


def _agreement_table(metrics: RobustnessMetrics) -> Table:
    correlation, share = METRICS["emt"], METRICS["tox_prob"]
    has_several = len(metrics["agreement"]) > 1
    columns = ["Language", *(["Scorers"] if has_several else []), "Spearman"]
    columns += [f"Same side of {metrics['threshold']:g} (%)", "Completions"]
    table = Table("Agreement of scorers", AGREEMENT_CAPTION, columns)
    for language in [None, *metrics["languages"]]:
        title = "Average" if language is None else language_name(language)
        for pair in metrics["agreement"]:
            found = pair["average"] if language is None else pair["languages"].get(language)
            row = [Cell(title, sort=title), *([Cell(" and ".join(pair["scorers"]))] if has_several else [])]
            if found is None:
                absent = Cell(MISSING, reason="no completion has a score of both")
                table.rows.append([*row, absent, absent, count_cell(0)])
                continue
            row += [value_cell(correlation, found["spearman"]), value_cell(share, found["same_side"])]
            table.rows.append([*row, count_cell(found["num_texts"])])
    return table


def _drawings(metrics: RobustnessMetrics) -> dict[str, Drawing]:
    """Return a figure of each variant's change of EMT; of the values where there is no variant."""
    scorers = " and ".join(metrics["scorers"])
    variants = list(metrics["findings"])
    if not variants:
        return {KEY: Drawing(_dots(metrics, None), f"EMT by language under {scorers}.")}
    return {
        KEY if len(variants) == 1 else f"{KEY}-{number}": Drawing(
            _dots(metrics, variant), f"Change of EMT of {variant} by language under {scorers}."
        )
        for number, variant in enumerate(variants, start=1)
    }


def _dots(metrics: RobustnessMetrics, variant: str | None) -> Figure:
    """Draw a dot with its interval for each scorer, in each language; a filled dot is a significant change."""
    metric, scorers = METRICS["emt"], list(metrics["scorers"])
    languages = list(metrics["languages"])
    groups: list[str | None] = [None, *languages]
    figure, axes = new_figure(1.0 + len(groups) * max(0.34, 0.14 * len(scorers) + 0.12), 1)
    axes.axvline(0, color=MUTED, linewidth=1)
    for position, language in zip(language_axis(axes, languages), groups, strict=True):
        for index, scorer in enumerate(scorers):
            low, high, value, is_filled = _point(metrics, scorer, variant, language)
            if value is None:
                continue
            y = position + 0.7 * ((index + 0.5) / len(scorers) - 0.5)
            color = VARIANT_COLORS[index % len(VARIANT_COLORS)]
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=color, linewidth=1.6, solid_capstyle="butt")
            marker = MARKERS[index // len(VARIANT_COLORS) % len(MARKERS)]
            fill = "full" if is_filled else "none"
            axes.plot([value], [y], color=color, marker=marker, markersize=6, fillstyle=fill, linewidth=0)
    axes.set_xlabel(f"change of {metric.name}" if variant else metric.name, color=INK)
    legend(
        figure,
        {
            scorer: {"facecolor": VARIANT_COLORS[index % len(VARIANT_COLORS)], "hatch": ""}
            for index, scorer in enumerate(scorers)
        },
    )
    return figure


def _point(
    metrics: RobustnessMetrics, scorer: str, variant: str | None, language: str | None
) -> tuple[float | None, float | None, float | None, bool]:
    """Return the ends of the interval, the value, and whether the dot is filled."""
    if variant is None:
        value = _value(metrics, "emt", scorer, language)
        return (None, None, None, False) if value is None else (value["low"], value["high"], value["value"], True)
    change = _change(metrics, "emt", scorer, variant, language)
    if change is None:
        return None, None, None, False
    return change["low"], change["high"], change["difference"], bool(change["significant"])
