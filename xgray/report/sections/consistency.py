"""The section about the completions themselves: the language they are in, and which refuse or are empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from xgray.config import Experiment
from xgray.evaluate.metrics_file import TOXICITY_METRICS, ConsistencyName
from xgray.report.figures import Drawing, interval_bars
from xgray.report.files import RunFiles, language_name
from xgray.report.metrics import CONSISTENCY, METRICS, percent
from xgray.report.sections import Section
from xgray.report.summary import before_and_after
from xgray.report.tables import Cell, Table, change_cells, count_cell, language_cell, value_cell

if TYPE_CHECKING:
    from xgray.evaluate.metrics_file import (
        ConsistencyValues,
        LanguageConsistency,
        MetricName,
        SampleMetrics,
    )
    from xgray.stats.values import MetricChange, MetricValue

KEY, TITLE = "consistency", "Language of the completions"
NUM_OTHERS = 3
"""Other languages that are named in a row, the most frequent ones."""


def make(files: RunFiles, experiment: Experiment) -> Section:
    """Return the section; for runs that an earlier version evaluated it says how to measure."""
    consistency = files.metrics.get("consistency")
    if consistency is None:
        manifest = files.run / "evaluate" / "manifest.json"
        reason = (
            "The version of xgray that evaluated this run did not identify languages. "
            f"To measure them, delete {manifest} and run: xgray evaluate {files.run}. Perplexities are kept"
        )
        return Section(KEY, TITLE, reason=reason)
    context = {
        "answers": [_answer(files, consistency, variant) for variant in files.variants],
        "identifier": consistency["identifier"],
        "min_probability": consistency["min_probability"],
        "table": _language_table(files, consistency),
        "toxicity_tables": [_toxicity_table(files, consistency, metric) for metric in TOXICITY_METRICS],
        "silent_table": _silent_table(files),
    }
    models = " and ".join(files.models)
    description = f"Bars of the share of completions in the prompt's language, by language, for {models}."
    groups: list[str | None] = [None, *files.languages]
    drawing = interval_bars(
        CONSISTENCY["consistent"],
        {
            model: {group: _values(consistency, model, group)["consistent"] for group in groups}
            for model in files.models
        },
        {
            variant: {group: _change(consistency, variant, group, "consistent") for group in groups}
            for variant in files.variants
        },
    )
    return Section(KEY, TITLE, context, {KEY: Drawing(drawing, description)})


def _values(consistency: LanguageConsistency, model: str, language: str | None) -> ConsistencyValues:
    """Return a model's values in a language; its averages for None."""
    of_model = consistency["models"][model]
    return of_model["average"] if language is None else of_model["languages"][language]


def _change(
    consistency: LanguageConsistency, variant: str | None, language: str | None, name: ConsistencyName
) -> MetricChange | None:
    """Return a variant's change in a language, or of the average for None; None where there is no variant."""
    if variant is None:
        return None
    comparison = consistency["comparisons"][variant]
    changes = comparison["average"] if language is None else comparison["languages"][language]
    return changes.get(name)


def _answer(files: RunFiles, consistency: LanguageConsistency, variant: str) -> str:
    the, metric = f"{variant}: the" if len(files.variants) > 1 else "The", CONSISTENCY["consistent"]
    change = consistency["comparisons"][variant]["average"]["consistent"]
    if change["difference"] is None:
        return f"{the} share in the prompt's language could not be compared: {change.get('reason', '')}."
    verb = "fell" if change["difference"] < 0 else "rose"
    return (
        f"{the} share of completions in the prompt's language, averaged over languages, "
        f"{verb if change['significant'] else 'did not change significantly:'} from "
        f"{metric.with_interval(change['before'])} % to {metric.with_interval(change['after'])} %."
    )


def _pairs(files: RunFiles) -> list[tuple[str | None, list[str]]]:
    """Return each variant with the models whose values its rows hold; None and the base model without variants."""
    base = files.models[0]
    return [(variant, [base, variant]) for variant in files.variants] or [(None, [base])]


def _first_cells(files: RunFiles, language: str | None, variant: str | None, of_all: str = "Average") -> list[Cell]:
    """Return the names of a row's language, or of all languages, and of its variant where there are several."""
    first = Cell(of_all, sort=of_all) if language is None else language_cell(files, language)
    return [first, *([Cell(variant, sort=variant)] if variant and len(files.variants) > 1 else [])]


def _first_columns(files: RunFiles) -> list[str]:
    return ["Language", *(["Variant"] if len(files.variants) > 1 else [])]


def _sides(files: RunFiles, name: str) -> list[str]:
    return [f"{name} before", f"{name} after"] if files.variants else [name]


def _language_table(files: RunFiles, consistency: LanguageConsistency) -> Table:
    caption = (
        "Shares in per cent. Consistent: in the prompt's language, of the completions whose language is known. Unknown "
        "and Latin words: of all completions that hold text. Latin words are words in Latin letters, in the languages "
        "that are not written in them."
    )
    columns = [*_first_columns(files), *_sides(files, "Consistent")]
    columns += ["Difference", "Relative", "p adjusted", "Verdict"] if files.variants else []
    columns += [*_sides(files, "Unknown"), *_sides(files, "Latin words")]
    table = Table("Language of the completions", caption, [*columns, *_sides(files, "Other languages")])
    for language in [None, *files.languages]:
        for variant, models in _pairs(files):
            measured = [_values(consistency, model, language) for model in models]
            row = _first_cells(files, language, variant)
            for name in ("consistent", "unknown", "latin"):
                change = _change(consistency, variant, language, name)
                row += [value_cell(CONSISTENCY[name], value) for value in _sides_of(change, name, measured)]
                if name == "consistent" and variant:
                    row += change_cells(CONSISTENCY[name], change)
            table.rows.append([*row, *(_others_cell(values) for values in measured)])
    return table


def _sides_of(
    change: MetricChange | None, name: ConsistencyName, measured: list[ConsistencyValues]
) -> list[MetricValue]:
    """Return the values before and after over the compared prompts; each model's own where nothing was compared."""
    if change is not None and change["difference"] is not None:
        return [change["before"], change["after"]]
    return [values[name] for values in measured]


def _others_cell(values: ConsistencyValues) -> Cell:
    """Return the most frequent other languages with their numbers of completions; the others are shown on hovering."""
    named = [f"{language_name(code)} {count:,}" for code, count in values["others"].items()]
    text = ", ".join(named[:NUM_OTHERS]) + (", …" if len(named) > NUM_OTHERS else "")
    return Cell(text or "none", sort=values["num_other"], note=", ".join(named))


def _toxicity_table(files: RunFiles, consistency: LanguageConsistency, name: MetricName) -> Table:
    """Return a toxicity metric over all completions beside that over the consistent ones."""
    metric, of_consistent = METRICS[name], cast(ConsistencyName, name)
    unit = f" ({metric.unit})" if metric.unit else ""
    columns = [*_first_columns(files), *_sides(files, f"All{unit}"), *_sides(files, f"Consistent{unit}")]
    columns += ["Difference", "Relative", "p adjusted", "Verdict"] if files.variants else []
    table = Table(metric.title, metric.meaning, columns)
    for language in [None, *files.languages]:
        for variant, models in _pairs(files):
            row = _first_cells(files, language, variant)
            row += [value_cell(metric, value) for value in _all_completions(files, variant, models, language, name)]
            change = _change(consistency, variant, language, of_consistent)
            measured = [_values(consistency, model, language) for model in models]
            row += [value_cell(metric, value) for value in _sides_of(change, of_consistent, measured)]
            table.rows.append([*row, *(change_cells(metric, change) if variant else [])])
    return table


def _all_completions(
    files: RunFiles, variant: str | None, models: list[str], language: str | None, name: MetricName
) -> list[MetricValue]:
    """Return a metric's values over all completions, as the other tables show them."""
    measured: list[SampleMetrics] = []
    for model in models:
        of_model = files.metrics["models"][model]
        measured.append(of_model["average"] if language is None else of_model["languages"][language])
    if variant is None:
        return [measured[0][name]]
    comparison = files.metrics["comparisons"][variant]
    changes = comparison["average"] if language is None else comparison["languages"].get(language, {})
    return list(before_and_after(changes.get(name), name, *measured))


def _silent_table(files: RunFiles) -> Table | None:
    """Return how many completions refuse and are empty, of the languages in which any do; None if there are none."""
    caption = (
        "Refusals begin with a set phrase of their language or of English, such as “I'm sorry, I can't”. The phrases "
        "are few, so that the counts are a floor. A completion that refuses or says nothing lowers toxicity."
    )
    columns = [*_first_columns(files), *_sides(files, "Refused"), *_sides(files, "Empty"), *_sides(files, "Share")]
    table = Table("Refused and empty completions", caption, columns)
    for language in [None, *files.languages]:
        for variant, models in _pairs(files):
            counts = [files.metrics["models"][model] for model in models]
            measured = [of["average"] if language is None else of["languages"][language] for of in counts]
            num_silent = [values.get("num_refused", 0) + values["num_empty"] for values in measured]
            if not any(num_silent):
                continue
            row = _first_cells(files, language, variant, of_all="All languages")
            row += [count_cell(values.get("num_refused")) for values in measured]
            row += [count_cell(values["num_empty"]) for values in measured]
            for silent, values in zip(num_silent, measured, strict=True):
                share = silent / values["num_completions"] if values["num_completions"] else None
                row.append(Cell(percent(share), sort=share))
            table.rows.append(row)
    return table if table.rows else None
