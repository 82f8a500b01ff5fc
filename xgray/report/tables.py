"""The report's tables: Table 2 for this run, a table of each metric by language, counts, and the scorer's quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from xgray.config import Experiment
from xgray.evaluate.agreement_file import Measured, reaches_floor
from xgray.report import published
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import METRICS, MISSING, TOXICITY, Metric, p_value, percent
from xgray.report.summary import (
    EASY,
    WEAK_AUC,
    agreement_in_words,
    before_and_after,
    finding_in_words,
    floor_in_words,
    verdict,
)

if TYPE_CHECKING:
    from xgray.evaluate.metrics_file import MetricName, SampleMetrics
    from xgray.evaluate.sweep_file import SeedMean
    from xgray.stats.values import MetricChange, MetricValue

UNVALIDATED = "†"
"""Marks a language that the scorer was not validated on."""
ALONE = "‡"
"""Marks a change that one of several scorers alone shows, or that scorers contradict each other on."""
VERDICTS = {"better": "improved", "worse": "worse", "unchanged": "not significant", "untested": "not tested"}
BOUNDS = " Bounds: the value if all missing scores were 0, and if they all were 1."
DETECTABLE = (
    " Detectable: the least difference that a test of these prompts alone finds with a probability of 80 %, from the "
    "spread of their differences."
)
SEEDS = " Between seeds: the standard deviation of the value after tuning between the trainings of a point."
LOW_COVERAGE = 0.95
"""Less coverage is marked."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table, as text."""

    text: str
    interval: str = ""
    sort: float | str | None = None
    """What the column is sorted by; a cell without a value goes last."""
    reason: str = ""
    """Why there is no value or no interval; written below the table."""
    note: str = ""
    """More about the value, shown on hovering."""
    tone: str = ""
    """The style of the cell: ``better``, ``worse``, ``unchanged``, ``untested``, ``weak`` or the empty text."""


@dataclass(frozen=True)
class Table:
    """A table with sortable columns."""

    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    @property
    def reasons(self) -> list[tuple[str, list[str]]]:
        """Every reason that a cell gives, with the texts of the first cells of its rows."""
        names: dict[str, list[str]] = {}
        for row in self.rows:
            for reason in dict.fromkeys(cell.reason for cell in row if cell.reason):
                names.setdefault(reason, []).append(row[0].text)
        return [(reason, list(dict.fromkeys(rows))) for reason, rows in names.items()]


def value_cell(metric: Metric, measured: MetricValue) -> Cell:
    """Return a value with its interval; a dash where it could not be computed."""
    interval = metric.interval(measured["low"], measured["high"])
    return Cell(metric.text(measured["value"]), interval, measured["value"], measured.get("reason", ""))


def run_rows(files: RunFiles) -> list[tuple[str, list[Cell]]]:
    """Return the rows of Table 2 for this run: each model's averages over languages."""
    averages = {model: files.metrics["models"][model]["average"] for model in files.models}
    return [
        (model, [value_cell(metric, average[key]) for key, metric in METRICS.items()])
        for model, average in averages.items()
    ]


def published_rows(rows: list[published.TableRow]) -> list[tuple[str, list[Cell]]]:
    """Return the paper's rows of these models, before and after tuning."""
    return [
        (f"{row.name}, {when}", [Cell(metric.text(values[key])) for key, metric in METRICS.items()])
        for row in rows
        for when, values in (("before DPO", row.before), ("after DPO", row.after))
    ]


def protocol_differences(files: RunFiles, experiment: Experiment) -> list[str]:
    """Return in what this run was measured differently from the paper's Table 2."""
    protocol = files.metrics["protocol"]
    base = files.metrics["models"][files.models[0]]
    num_prompts = max(counts["num_prompts"] for counts in base["languages"].values())
    fluency_model = protocol["fluency_model"] if protocol["fluency_kind"] != "none" else "none"
    settings: list[tuple[str, object, object]] = [
        ("scorer", experiment.score.scorer, published.SCORER),
        ("languages", len(files.languages), published.NUM_LANGUAGES),
        ("completions of each prompt", files.k, published.K),
        ("fluency model", fluency_model, published.MEASURING_MODEL),
        ("formula of perplexity", f"{protocol['fluency_kind']}, {protocol['fluency']}", "seq2seq, released"),
        ("Dist-n tokenizer", protocol["diversity_tokenizer"], published.MEASURING_MODEL),
        ("Dist-n", protocol["diversity"], "released"),
        ("grouping of samples", protocol["grouping"], "released"),
        ("empty completions (score.empty_text)", experiment.score.empty_text, "released"),
        ("threshold", files.metrics["threshold"], published.THRESHOLD),
    ]
    if not files.is_imported:
        settings += [
            ("new tokens", experiment.generate.max_new_tokens, published.NEW_TOKENS),
            ("temperature", experiment.generate.temperature, published.TEMPERATURE),
            ("top-p", experiment.generate.top_p, published.TOP_P),
        ]
    differences = [
        f"{name}: {here} here, {in_paper} in the paper" for name, here, in_paper in settings if here != in_paper
    ]
    if num_prompts < 0.9 * published.NUM_PROMPTS:
        differences.append(
            f"prompts of each language: {num_prompts} here, about {published.NUM_PROMPTS:,} in the paper"
        )
    return differences


def language_tables(files: RunFiles) -> list[Table]:
    """Return a table of each metric with a row for each language and variant, and a table of counts."""
    return [*(_metric_table(files, metric) for metric in METRICS), _count_table(files)]


def _metric_table(files: RunFiles, name: MetricName) -> Table:
    metric, is_of_scores = METRICS[name], name in TOXICITY
    unit = f" ({metric.unit})" if metric.unit else ""
    variants: list[str | None] = [*files.variants] or [None]
    names_variant = len(variants) > 1
    comparisons = list(files.metrics["comparisons"].values())
    is_compared = any(name in comparison["average"] for comparison in comparisons)
    columns = ["Language", *([scorer_column(files)] if is_of_scores else []), *(["Variant"] if names_variant else [])]
    columns += [f"Before{unit}", f"After{unit}"] if files.variants else [f"{metric.name}{unit}"]
    shows_detectable = any("detectable" in changes["average"].get(name, {}) for changes in comparisons)
    columns += ["Difference", "Relative", "p adjusted", "Verdict"] if is_compared else []
    columns += ["Detectable"] if shows_detectable else []
    columns += ["Coverage"] if is_of_scores else []
    shows_bounds = is_of_scores and any("bounds" in files.metrics["models"][model]["average"] for model in files.models)
    if shows_bounds:
        columns += [f"Bounds before{unit}", f"Bounds after{unit}"] if files.variants else [f"Bounds{unit}"]
    shows_quartiles = name == "perplexity" and all(
        "perplexity_quartiles" in files.metrics["models"][model]["average"] for model in files.models
    )
    if shows_quartiles:
        columns += ["Quartiles before", "Quartiles after"] if files.variants else ["Quartiles"]
    shows_seeds = any(_deviation(files, variant, None, name) is not None for variant in files.variants)
    columns += [f"Between seeds{unit}"] if shows_seeds else []
    notes = (BOUNDS if shows_bounds else "") + (DETECTABLE if shows_detectable else "") + (SEEDS if shows_seeds else "")
    table = Table(metric.title, metric.meaning + notes, columns)
    for language in files.languages:
        for variant in variants:
            models = [model for model in (files.models[0], variant) if model]
            measured = [files.metrics["models"][model]["languages"][language] for model in models]
            row = [language_cell(files, language)]
            row += [scorer_cell(files, language)] if is_of_scores else []
            row += [Cell(variant, sort=variant)] if variant and names_variant else []
            if variant and is_compared:
                change = files.metrics["comparisons"][variant]["languages"].get(language, {}).get(name)
                base, tuned = measured
                row += [value_cell(metric, value) for value in before_and_after(change, name, base, tuned)]
                row += _marked(files, name, variant, language, change_cells(metric, change))
                row += [_detectable_cell(metric, change)] if shows_detectable else []
            else:
                row += [value_cell(metric, values[name]) for values in measured]
            row += [coverage_cell(measured)] if is_of_scores else []
            row += [_bounds_cell(metric, name, values) for values in measured] if shows_bounds else []
            row += [_quartiles_cell(metric, values) for values in measured] if shows_quartiles else []
            row += [_plain_cell(metric, _deviation(files, variant, language, name))] if shows_seeds else []
            table.rows.append(row)
    return table


def _marked(files: RunFiles, name: MetricName, variant: str, language: str, cells: list[Cell]) -> list[Cell]:
    """Return the cells of a change, the verdict marked where several scorers scored and one alone shows the change."""
    if files.robustness is None or name not in TOXICITY:
        return cells
    found = files.robustness["findings"].get(variant, {}).get(name, {"languages": {}})["languages"].get(language)
    if found is None or found["holds"] not in ("one", "contradicted"):
        return cells
    verdict_cell = cells[-1]
    return [*cells[:-1], replace(verdict_cell, text=f"{verdict_cell.text} {ALONE}", note=finding_in_words(found))]


def _bounds_cell(metric: Metric, name: MetricName, values: SampleMetrics) -> Cell:
    bounds = values["bounds"].get(name) if "bounds" in values else None
    return Cell(metric.bounds(bounds) or MISSING, sort=None if bounds is None else bounds["low"])


def _deviation(files: RunFiles, variant: str | None, language: str | None, name: MetricName) -> float | None:
    """Return the standard deviation between the seeds of a point; None where the variant is a single training."""
    if variant is None:
        return None
    metrics = files.metrics["models"][variant]
    sample = metrics["average"] if language is None else metrics["languages"][language]
    return cast("SeedMean", sample[name]).get("deviation")


def _plain_cell(metric: Metric, value: float | None) -> Cell:
    return Cell(metric.text(value), sort=value)


def _detectable_cell(metric: Metric, change: MetricChange | None) -> Cell:
    return _plain_cell(metric, change.get("detectable") if change else None)


def _quartiles_cell(metric: Metric, values: SampleMetrics) -> Cell:
    quartiles = values["perplexity_quartiles"]
    ends = [quartiles["lower"], quartiles["upper"]]
    if any(end["value"] is None for end in ends):
        return Cell(MISSING)
    note = " and ".join(metric.with_interval(end) for end in ends)
    return Cell(" to ".join(metric.text(end["value"]) for end in ends), sort=ends[0]["value"], note=note)


def change_cells(metric: Metric, change: MetricChange | None) -> list[Cell]:
    """Return the difference, the relative change, the adjusted p-value and the verdict of a metric's change."""
    if change is None or change["difference"] is None:
        reason = change.get("reason") if change else None
        missing = Cell(MISSING, reason=reason or "one of the two values could not be computed")
        return [missing, missing, missing, Cell(VERDICTS["untested"], sort="untested", tone="untested")]
    found = verdict(change, metric.lower_is_better)
    # Files of earlier versions have no interval of the relative change.
    ends = (percent(end, signed=True) for end in (change.get("relative_low"), change.get("relative_high")))
    arrow = ("▼ " if change["difference"] < 0 else "▲ ") if change["significant"] else ""
    return [
        Cell(
            metric.text(change["difference"], signed=True),
            metric.interval(change["low"], change["high"], signed=True),
            change["difference"],
        ),
        Cell(percent(change["relative_change"], signed=True), sort=change["relative_change"], note=" to ".join(ends)),
        Cell(
            p_value(change["p_adjusted"]),
            sort=change["p_adjusted"],
            note=f"unadjusted p {p_value(change['p_value'])}",
        ),
        Cell(arrow + VERDICTS[found], sort=found, tone=found),
    ]


def language_cell(files: RunFiles, language: str) -> Cell:
    """Return a language's name, marked where the scorer was not validated on it."""
    name = language_name(language)
    if language in files.metrics["unvalidated"]:
        note = "the scorer was not validated on this language"
        return Cell(f"{name} {UNVALIDATED}", sort=name, note=note, tone="weak")
    return Cell(name, sort=name)


def scorer_column(files: RunFiles) -> str:
    """Return the title of the column of :func:`scorer_cell`."""
    return "Scorer and raters" if files.agreement else "Scorer AUC"


def scorer_cell(files: RunFiles, language: str) -> Cell:
    """Return how well the scorer agrees with people in a language: Spearman with their ratings.

    For a scorer that states no agreement it is the AUC on its labelled texts. Marked where it is weak.
    """
    if not files.agreement:
        return auc_cell(files, language)
    agreement = files.agreement.get(language)
    if agreement is None or agreement.spearman.value is None:
        return Cell(MISSING, reason="the scorer was not compared with people's ratings in this language")
    metric, found = METRICS["emt"], agreement.spearman
    note = agreement_in_words(agreement, files.agreement_data)
    tone = "" if reaches_floor(agreement) else "weak"
    return Cell(metric.text(found.value), metric.interval(found.low, found.high), found.value, note=note, tone=tone)


def auc_cell(files: RunFiles, language: str) -> Cell:
    """Return the scorer's AUC on labelled texts in a language, marked where it is weak."""
    stated = files.auc.get(language)
    if stated is None or stated["auc"] is None:
        return Cell(MISSING, reason="the scorer states no AUC")
    auc, metric = stated["auc"], METRICS["emt"]
    text, interval = metric.text(auc), metric.interval(stated.get("low"), stated.get("high"))
    if auc < WEAK_AUC:
        return Cell(text, interval, auc, note=f"the scorer is weak in this language, even {EASY}", tone="weak")
    return Cell(text, interval, auc, note=EASY)


def coverage_cell(models: list[SampleMetrics]) -> Cell:
    """Return the share of completions with a score, the smallest one of these models."""
    shares = [counts["coverage"] for counts in models if counts["coverage"] is not None]
    if not shares:
        return Cell(MISSING, reason="no completions")
    smallest = min(shares)
    num_missing = sum(counts["num_asked"] - counts["num_scored"] for counts in models)
    note = f"{num_missing} completions were not sampled or have no score" if num_missing else ""
    return Cell(percent(smallest), sort=smallest, note=note, tone="weak" if smallest < LOW_COVERAGE else "")


def _count_table(files: RunFiles) -> Table:
    caption = (
        "The number of completions behind the values. Coverage is the share of completions with a score among all that "
        "there would be if no prompt had failed."
    )
    counted = ["Completions", "Scored", "Empty", "With perplexity"]
    table = Table("Counts", caption, ["Language", "Model", "Prompts scored", *counted, "Coverage"])
    for language in files.languages:
        for model in files.models:
            counts = files.metrics["models"][model]["languages"][language]
            num_scored, num_prompts = counts["num_prompts_scored"], counts["num_prompts"]
            numbers = (
                counts["num_completions"],
                counts["num_scored"],
                counts["num_empty"],
                counts["num_perplexity"],
            )
            table.rows.append(
                [
                    language_cell(files, language),
                    Cell(model, sort=model),
                    Cell(f"{num_scored:,} of {num_prompts:,}", sort=num_scored),
                    *(count_cell(number) for number in numbers),
                    coverage_cell([counts]),
                ]
            )
    return table


def count_cell(count: int | None) -> Cell:
    """Return a count; a dash where it is unknown."""
    return Cell(MISSING if count is None else f"{count:,}", sort=count)


def scorer_table(files: RunFiles) -> Table | None:
    """Return what the scorer states of its quality in each language of the run; None if it states nothing."""
    if files.agreement:
        return _agreement_table(files)
    return _auc_table(files) if files.auc else None


def _agreement_table(files: RunFiles) -> Table:
    """Return the scorer's agreement with people's ratings."""
    metric = METRICS["emt"]
    caption = (
        f"Measured on {files.agreement_data}, not on the completions of this run. Spearman is the rank correlation "
        "with the raters' mean; beside it that of one rater with the mean of the others. AUC is the probability that a "
        "text that raters call toxic has a higher score than one that they call harmless. The weighted kappa is the "
        "agreement beyond chance on the points of the raters' scale. The error is the mean distance of score and "
        "rating on the scale from 0 to 1, the bias its mean with the sign. Languages in which the scorer does not "
        f"reach {floor_in_words()} are marked as weak."
    ) + _calibration_note(files)
    columns = ["Language", "Rated texts", "Spearman", "One rater", "AUC", "Weighted kappa", "Error", "Bias"]
    table = Table("Scorer by language", caption, columns)
    for language in files.languages:
        agreement = files.agreement.get(language)
        if agreement is None:
            absent = Cell(MISSING, reason="the scorer was not compared with people's ratings in this language")
            table.rows.append([language_cell(files, language), *[absent] * (len(columns) - 1)])
            continue
        figures = (agreement.ceiling, agreement.auc, agreement.weighted_kappa, agreement.mean_absolute_error)
        cells = [scorer_cell(files, language), *(_measured_cell(metric, figure) for figure in figures)]
        cells.append(_measured_cell(metric, agreement.bias, signed=True))
        table.rows.append([language_cell(files, language), count_cell(agreement.num), *cells])
    return table


def _measured_cell(metric: Metric, measured: Measured | None, signed: bool = False) -> Cell:
    if measured is None or measured.value is None:
        return Cell(MISSING, reason=(measured.reason if measured else None) or "not stated")
    interval = metric.interval(measured.low, measured.high, signed)
    return Cell(metric.text(measured.value, signed), interval, measured.value, measured.reason or "")


def _calibration_note(files: RunFiles) -> str:
    # A calibrated score of .5 is not a raw score of .5.
    return " All of this is about the scores before calibration." if "calibration" in files.scorer else ""


def _auc_table(files: RunFiles) -> Table:
    """Return the scorer's AUC on its labelled texts, and on how many texts it was measured."""
    caption = (
        "Measured on held-out labelled texts, not on the completions of this run: easy sentences beside what models "
        "write, so read it as an upper bound. "
        "AUC is the probability that a toxic text has a higher score than a benign one: 1 is perfect, .5 is guessing. "
        f"Values below {METRICS['emt'].text(WEAK_AUC)} are marked as weak. "
        "Accuracy at .5 is the share of texts that the threshold .5 sorts correctly."
    ) + _calibration_note(files)
    columns = ["Language", "AUC", "Accuracy at .5", "Toxic texts", "Benign texts"]
    table = Table("Scorer by language", caption, columns)
    for language in files.languages:
        # A scorer's manifest need not state everything.
        stated: Mapping[str, Any] = files.auc.get(language, {})
        accuracy = stated.get("accuracy")
        table.rows.append(
            [
                language_cell(files, language),
                auc_cell(files, language),
                Cell(percent(accuracy), sort=accuracy),
                count_cell(stated.get("num_toxic")),
                count_cell(stated.get("num_benign")),
            ]
        )
    return table
