"""The report's tables as cells of text: Table 2 for this run, the languages one by one, and the scorer's AUC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xgray.config import Experiment
from xgray.report import published
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, MISSING, TOXICITY, Metric, p_value, percent
from xgray.report.summary import WEAK_AUC, paired, verdict

UNVALIDATED = "†"
"""Marks a language that the scorer was not validated on."""
VERDICTS = {"better": "improved", "worse": "worse", "unchanged": "not significant", "untested": "not tested"}


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    sort: float | str | None = None
    """What the column is sorted by; a cell without a value goes last."""
    reason: str = ""
    """Why there is no value or no interval; told below the table."""
    note: str = ""
    """More about the value, shown on hovering."""
    tone: str = ""
    """How the cell is shown: ``better``, ``worse``, ``weak`` or plain."""


@dataclass(frozen=True)
class Table:
    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, list[str]]]:
        """Every reason that a cell gives, with the first cells of its rows."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for reason in dict.fromkeys(one.reason for one in row if one.reason):
                found.setdefault(reason, []).append(row[0].text)
        return [(reason, list(dict.fromkeys(names))) for reason, names in found.items()]


def value_cell(metric: Metric, cell: dict[str, Any]) -> Cell:
    """A metric with its interval; a dash where it could not be computed."""
    text, interval = metric.text(cell["value"]), metric.interval(cell["low"], cell["high"])
    return Cell(text, interval, cell["value"], cell.get("reason", ""))


def run_rows(files: RunFiles) -> list[tuple[str, list[Cell]]]:
    """Table 2 for this run: each model and the averages of its metrics."""
    averages = {model: files.metrics["models"][model]["average"] for model in files.models}
    return [
        (model, [value_cell(metric, average[metric.key]) for metric in METRICS.values()])
        for model, average in averages.items()
    ]


def published_rows(rows: list[published.Published]) -> list[tuple[str, list[Cell]]]:
    """The paper's rows of these models, before and after tuning."""
    return [
        (f"{row.name}, {when}", [Cell(metric.text(values[key])) for key, metric in METRICS.items()])
        for row in rows
        for when, values in (("before DPO", row.before), ("after DPO", row.after))
    ]


def protocol_differences(files: RunFiles, experiment: Experiment) -> list[str]:
    """In what this run was measured otherwise than the paper's Table 2."""
    protocol = files.metrics["protocol"]
    num_prompts = max(one["num_prompts"] for one in files.metrics["models"][files.models[0]]["languages"].values())
    compared = [
        ("scorer", experiment.score.scorer, published.SCORER),
        ("languages", len(files.languages), published.NUM_LANGUAGES),
        ("completions of each prompt", files.k, published.K),
        (
            "fluency model",
            protocol["fluency_model"] if protocol["fluency_kind"] != "none" else "none",
            published.MEASURING_MODEL,
        ),
        ("arithmetic of fluency", f"{protocol['fluency_kind']}, {protocol['fluency']}", "seq2seq, released"),
        ("Dist-n tokenizer", protocol["diversity_tokenizer"], published.MEASURING_MODEL),
        ("Dist-n", protocol["diversity"], "released"),
        ("grouping of samples", protocol["grouping"], "released"),
        ("toxic from", files.metrics["threshold"], published.THRESHOLD),
    ]
    if not files.imported:
        compared += [
            ("new tokens", experiment.generate.max_new_tokens, published.NEW_TOKENS),
            ("temperature", experiment.generate.temperature, published.TEMPERATURE),
            ("top-p", experiment.generate.top_p, published.TOP_P),
        ]
    found = [f"{what}: {here} here, {there} in the paper" for what, here, there in compared if here != there]
    if num_prompts < 0.9 * published.NUM_PROMPTS:
        found.append(f"prompts of each language: {num_prompts} here, about {published.NUM_PROMPTS:,} in the paper")
    return found


def language_tables(files: RunFiles) -> list[Table]:
    """A table for each metric, a row for each language and variant; and one of what was counted."""
    return [*(_metric_table(files, metric) for metric in METRICS.values()), _count_table(files)]


def _metric_table(files: RunFiles, metric: Metric) -> Table:
    unit = f" ({metric.unit})" if metric.unit else ""
    of_scores = metric.key in TOXICITY
    several = len(files.variants) > 1
    variants: list[str | None] = [*files.variants] or [None]
    compared = any(metric.key in one["average"] for one in files.metrics["comparisons"].values())
    columns = ["Language", *(["Scorer AUC"] if of_scores else []), *(["Variant"] if several else [])]
    columns += [f"Before{unit}", f"After{unit}"] if files.variants else [f"{metric.name}{unit}"]
    columns += ["Difference", "Relative", "p adjusted", "Verdict"] if compared else []
    columns += ["Coverage"] if of_scores else []
    table = Table(metric.title, metric.meaning, columns)
    for language in files.languages:
        for variant in variants:
            figures = [
                files.metrics["models"][model]["languages"][language] for model in (files.models[0], variant) if model
            ]
            row = [language_cell(files, language)]
            row += [auc_cell(files, language)] if of_scores else []
            row += [Cell(variant, sort=variant)] if variant and several else []
            if variant and compared:
                comparison = files.metrics["comparisons"][variant]["languages"].get(language, {})
                row += [value_cell(metric, one) for one in paired(comparison, metric.key, *figures)]
                row += comparison_cells(metric, comparison.get(metric.key, {}))
            else:
                row += [value_cell(metric, one[metric.key]) for one in figures]
            table.rows.append([*row, *([coverage_cell(figures)] if of_scores else [])])
    return table


def comparison_cells(metric: Metric, comparison: dict[str, Any]) -> list[Cell]:
    """Difference, relative change, adjusted p and verdict of a metric's comparison with the base."""
    difference = comparison.get("difference")
    if difference is None:
        missing = Cell(MISSING, reason=comparison.get("reason", "one of the two could not be computed"))
        return [missing, missing, missing, Cell(VERDICTS["untested"], sort="untested", tone="untested")]
    found = verdict(comparison, metric.lower_is_better)
    interval = metric.interval(comparison.get("low"), comparison.get("high"), signed=True)
    adjusted, relative = comparison.get("p_adjusted"), comparison.get("relative_change")
    ends = (percent(comparison.get(f"relative_{end}"), signed=True) for end in ("low", "high"))
    unadjusted = f"unadjusted p {p_value(comparison.get('p_value'))}"
    arrow = ("▼ " if difference < 0 else "▲ ") if comparison.get("significant") else ""
    return [
        Cell(metric.text(difference, signed=True), interval, difference),
        Cell(percent(relative, signed=True), sort=relative, note=" to ".join(ends)),
        Cell(p_value(adjusted), sort=adjusted, note=unadjusted),
        Cell(arrow + VERDICTS[found], sort=found, tone=found),
    ]


def language_cell(files: RunFiles, language: str) -> Cell:
    """A language's name, marked where the scorer was not validated on it."""
    name = language_name(language)
    if language in files.metrics["unvalidated"]:
        return Cell(f"{name} {UNVALIDATED}", sort=name, note="the scorer was not validated here", tone="weak")
    return Cell(name, sort=name)


def auc_cell(files: RunFiles, language: str) -> Cell:
    """The scorer's AUC in a language, flagged where it is weak."""
    told = files.auc.get(language)
    if told is None or told.get("auc") is None:
        return Cell(MISSING, reason="the scorer states no AUC")
    text, interval = METRICS["emt"].text(told["auc"]), METRICS["emt"].interval(told.get("low"), told.get("high"))
    if told["auc"] < WEAK_AUC:
        return Cell(text, interval, told["auc"], note="the scorer is weak in this language", tone="weak")
    return Cell(text, interval, told["auc"])


def coverage_cell(figures: list[dict[str, Any]]) -> Cell:
    """The share of the completions asked for that have a score, the least of these models'."""
    shares = [one["coverage"] for one in figures if one["coverage"] is not None]
    if not shares:
        return Cell(MISSING, reason="no completions")
    least = min(shares)
    missing = sum(one["num_asked"] - one["num_scored"] for one in figures)
    note = f"{missing} completions missing or without a score" if missing else ""
    return Cell(percent(least), sort=least, note=note, tone="weak" if least < 0.95 else "")


def _count_table(files: RunFiles) -> Table:
    counts = {
        "num_completions": "Completions",
        "num_scored": "Scored",
        "num_empty": "Empty",
        "num_perplexity": "With perplexity",
    }
    caption = (
        "How many texts stand behind the numbers. Coverage is the share of the completions asked for that have a "
        "score; a prompt that failed has none."
    )
    table = Table("Counts", caption, ["Language", "Model", "Prompts scored", *counts.values(), "Coverage"])
    for language in files.languages:
        for model in files.models:
            figures = files.metrics["models"][model]["languages"][language]
            scored, num_prompts = figures["num_prompts_scored"], figures["num_prompts"]
            prompts = Cell(f"{scored:,} of {num_prompts:,}", sort=scored)
            numbers = [prompts, *(Cell(f"{figures[key]:,}", sort=figures[key]) for key in counts)]
            table.rows.append(
                [language_cell(files, language), Cell(model, sort=model), *numbers, coverage_cell([figures])]
            )
    return table


def auc_table(files: RunFiles) -> Table:
    """The scorer's AUC of each language of the run, and on how many texts it was measured."""
    caption = (
        "Measured on held-out labelled texts, not on this run's completions. "
        "AUC is the chance that the scorer puts a toxic text above a benign one: 1 is perfect, .5 is guessing. "
        f"Below {METRICS['emt'].text(WEAK_AUC)} it is flagged as weak. "
        "Right at .5: the share of texts that the threshold .5 sorts correctly."
    )
    if "calibration" in files.scorer:  # the run's .5 is another one
        caption += " All of it is of the scores before calibration."
    table = Table("Scorer by language", caption, ["Language", "AUC", "Right at .5", "Toxic texts", "Benign texts"])
    for language in files.languages:
        told = files.auc.get(language, {})
        accuracy = told.get("accuracy")
        counts = [told.get(key) for key in ("num_toxic", "num_benign")]
        right = Cell(percent(accuracy), sort=accuracy)
        numbers = [Cell(MISSING if one is None else f"{one:,}", sort=one) for one in counts]
        table.rows.append([language_cell(files, language), auc_cell(files, language), right, *numbers])
    return table
