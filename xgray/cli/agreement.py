"""Tables of a scorer's agreement with people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from xgray.cli.tables import new_table, print_line, print_table
from xgray.evaluate.agreement_file import AVERAGE, FLOOR, Agreement, AgreementReport, Measured
from xgray.report.metrics import MISSING, Metric

FRACTION = Metric("")
"""Prints AUC, kappa and correlations: ``.512 [.480, .541]``."""
COLUMNS = {
    "Spearman": "spearman",
    "AUC": "auc",
    "Kendall": "kendall",
    "weighted kappa": "weighted_kappa",
    "same side of .5": "same_side",
    "absolute error": "mean_absolute_error",
}
"""The measures of the table, by their titles."""


def print_agreement(report: AgreementReport) -> None:
    """Print a scorer's agreement with people by attribute, beside that of raters, other scorers and baselines."""
    if report.num_raters == 1:
        print_line("Each text has one rating: how well people agree with each other cannot be computed.")
    for attribute, table in report.agreement.items():
        _print_scorer(report, attribute, table)
        _print_beside(report, attribute)
        _print_baselines(report, attribute)
        for line in _conclusions(report, attribute, table):
            print_line(line)


def text_with_interval(measured: Measured | None) -> str:
    """Return ``.512 [.480, .541]``, or a dash where there is no value."""
    if measured is None or measured.value is None:
        return MISSING
    return FRACTION.with_interval({"value": measured.value, "low": measured.low, "high": measured.high})


def _print_scorer(report: AgreementReport, attribute: str, table: Mapping[str, Agreement]) -> None:
    out = new_table("language", "texts", *COLUMNS, "bias")
    has_missing = any(measured.num_missing for measured in table.values())
    if has_missing:
        out.add_column("without score", justify="right")
    for code, measured in table.items():
        bias = MISSING
        if measured.bias and measured.bias.value is not None:
            bias = FRACTION.text(measured.bias.value, signed=True)
        cells = [text_with_interval(getattr(measured, name)) for name in COLUMNS.values()]
        missing = [f"{measured.num_missing:,}"] if has_missing else []
        out.add_row(code, f"{measured.num:,}", *cells, bias, *missing)
    title = f"{attribute}: {report.scorer} {report.scorer_version} on {report.agreement_data}"
    print_table(out, f"{title} ({report.scales[attribute]})")


def _print_beside(report: AgreementReport, attribute: str) -> None:
    """Print Spearman and AUC of the scorer beside those of single raters and other scorers."""
    tables = {"one rater": report.raters, report.scorer: report.agreement, **report.others}
    present = {name: table[attribute] for name, table in tables.items() if attribute in table}
    if len(present) == 1:
        return
    codes = list(dict.fromkeys(code for table in present.values() for code in table if code != AVERAGE))
    common = [code for code in codes if all(code in table for table in present.values())]
    out = new_table("language", *present)
    for code in codes:
        out.add_row(code, *(_spearman_and_auc(table.get(code)) for table in present.values()))
    if len(common) > 1:
        out.add_row(AVERAGE, *(_average(table, common) for table in present.values()))
    print_table(out, f"{attribute}: Spearman / AUC, each with the same ratings")
    if len(common) > 1 and (left_out := [code for code in codes if code not in common]):
        print_line(f"The average is over the {len(common)} languages that all have, without {' '.join(left_out)}.")


def _spearman_and_auc(measured: Agreement | None) -> str:
    if measured is None:
        return MISSING
    return " / ".join(FRACTION.text(figure.value) for figure in (measured.spearman, measured.auc))


def _average(table: Mapping[str, Agreement], codes: Sequence[str]) -> str:
    """Return the means of Spearman and AUC over languages, without those where they are not defined."""
    columns = [[table[code].spearman.value for code in codes], [table[code].auc.value for code in codes]]
    defined = [[value for value in column if value is not None] for column in columns]
    return " / ".join(FRACTION.text(fmean(column) if column else None) for column in defined)


def _print_baselines(report: AgreementReport, attribute: str) -> None:
    by_language = report.baselines.get(attribute, {})
    names = list(dict.fromkeys(name for figures in by_language.values() for name in figures))
    if not names:
        return
    out = new_table("language", *names, report.scorer)
    for code, figures in by_language.items():
        own = report.agreement[attribute].get(code)
        cells = [FRACTION.text(figures[name].value if name in figures else None) for name in names]
        out.add_row(code, *cells, FRACTION.text(own.auc.value if own else None))
    print_table(out, f"{attribute}: AUC of what does not read the texts")


def _conclusions(report: AgreementReport, attribute: str, table: Mapping[str, Agreement]) -> Iterator[str]:
    """Yield what the reader must know: sets that are no test, and languages that count as validated."""
    if solved := [f"{code} ({each.solved_by})" for code, each in table.items() if each.solved_by]:
        yield (
            f"These texts are no test: what does not read them tells them apart in {', '.join(solved)}. "
            "Nothing follows from the agreement there; measure on other texts."
        )
    no_better = [
        f"{code} ({each.no_better_than})" for code, each in table.items() if each.no_better_than and not each.solved_by
    ]
    if no_better:
        yield f"{report.scorer} is not clearly better than what does not read the texts in {', '.join(no_better)}."
    validated = report.validated[attribute]
    others = [code for code in table if code not in (*validated, AVERAGE)]
    rest = f"; not: {' '.join(others)}" if others and validated else ""
    yield (
        f"Validated for {attribute} (at least {FLOOR.num} rated texts, Spearman {FRACTION.text(FLOOR.spearman)}, AUC "
        f"{FRACTION.text(FLOOR.auc)}): {' '.join(validated) or 'no language'}{rest}"
    )
