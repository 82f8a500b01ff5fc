"""``xgray scorer``: fit, measure and calibrate scorers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cyclopts import App

from xgray.cli.fields import add_command, with_fields
from xgray.cli.options import DEFAULT_STORE, Arguments, Json
from xgray.cli.tables import new_table, print_line, print_table
from xgray.errors import InputError
from xgray.report.metrics import METRICS, MISSING, Metric

if TYPE_CHECKING:
    from xgray.score.calibration.agreement import LabelRow
    from xgray.score.calibration.fit import CalibrationResult
    from xgray.score.calibration.scorer_swap import SwapEffect
    from xgray.stats.bootstrap import ValueWithInterval

scorer = App(name="scorer", help="Fit, measure and calibrate scorers.")

FRACTION = Metric("")
"""Prints AUC, kappa and correlations: ``.512 [.480, .541]``."""


def fit(labelled: str, *, output: str, as_json: Json = False) -> None:
    """Fit the embedding scorer's head on labelled texts; score.head takes the file.

    Parameters
    ----------
    labelled
        A folder of {language}.csv files with the columns text and label, and split (fit, validate) to split them
        yourself.
    output
        The head's file, such as head.json.
    as_json
        Print the head's version and quality as JSON.
    """
    from xgray.score.embedding import fit_to_file

    head = fit_to_file(labelled, output)
    if as_json:
        print(json.dumps({"version": head.version, **head.facts}))
    else:
        print_head(head.version, head.facts, output)


@with_fields("score")
def measure(*arguments: Arguments, store: str = DEFAULT_STORE, as_json: Json = False) -> None:
    """Compare a scorer with human labels: AUC and kappa in each language, with intervals.

    Parameters
    ----------
    arguments
        A folder of {language}.csv files with the columns text and label. The options below choose the scorer; with
        --score.calibration FILE, kappa at the calibrated threshold is measured too.
    store
        The score store; a text in it is not scored again.
    as_json
        Print the table as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.score.build import score_section
    from xgray.score.calibration.measure import measure_scorer

    paths, options = split(arguments)
    if len(paths) != 1:
        raise InputError("name one folder of labelled texts: xgray scorer measure FOLDER")
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        rows = measure_scorer(section, paths[0], progress)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_labels(section.scorer, rows)


@with_fields("score")
def calibrate(
    *arguments: Arguments, output: str, store: str = DEFAULT_STORE, target: str = "perspective", as_json: Json = False
) -> None:
    """Map a scorer onto archived scores of another, in each language; score.calibration takes the file.

    The archived texts should be of the kind that will be scored: a map fitted on long texts is wrong for short ones.

    Parameters
    ----------
    arguments
        Runs whose toxicity is compared under both scorers. The options below choose the scorer to calibrate.
    output
        The calibration's file, such as calibration.json.
    store
        The score store that holds the target's scores.
    target
        The scorer to map onto, NAME or NAME@VERSION.
    as_json
        Print the calibration and the comparison as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.score.build import score_section
    from xgray.score.calibration.curves import write_calibration
    from xgray.score.calibration.fit import calibrate_scorer
    from xgray.storage.folder import Folder

    paths, options = split(arguments)
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        result = calibrate_scorer(section, target, [Folder(path) for path in paths], progress)
    write_calibration(output, result.calibration)
    if as_json:
        swaps = {name: asdict(effect) for name, effect in result.swaps.items()}
        comparison = {"swaps": swaps, "in_sample": result.in_sample, "not_compared": result.not_compared}
        print(json.dumps({"calibration": result.calibration.model_dump(mode="json"), **comparison}))
    else:
        print_calibration(result, output)


for command in (fit, measure, calibrate):
    add_command(scorer, command)


def fraction(value: ValueWithInterval | None) -> str:
    """Return a value between -1 and 1 with its interval, or a dash where there is none."""
    return FRACTION.with_interval({"value": value.value, "low": value.low, "high": value.high}) if value else MISSING


def print_head(version: str, facts: Mapping[str, Any], output: str) -> None:
    """Print the quality of a head in each language."""
    table = new_table("language", "AUC", "right at .5", "toxic", "benign")
    for code, quality in facts["auc"].items():
        auc = FRACTION.with_interval({"value": quality["auc"], "low": quality["low"], "high": quality["high"]})
        counts = (f"{quality['num_toxic']:,}", f"{quality['num_benign']:,}")
        table.add_row(code, auc, f"{quality['accuracy']:.0%}", *counts)
    print_table(table, f"Head {version}, on held-out texts")
    print_line(f"{output}: written. Use it with --score.head {output}")


def print_labels(name: str, rows: list[LabelRow]) -> None:
    """Print how well a scorer agrees with human labels in each language."""
    has_thresholds = any(row.threshold is not None for row in rows)
    columns = ["language", "texts", "toxic", "without score", "AUC", "kappa at .5"]
    table = new_table(*columns, *(["threshold", "kappa at threshold"] if has_thresholds else []))
    for row in rows:
        cells = [row.language, f"{row.num:,}", f"{row.num_toxic:,}", f"{row.num_missing:,}", fraction(row.auc)]
        cells.append(fraction(row.kappa))
        if has_thresholds:
            cells += [FRACTION.text(row.threshold), fraction(row.kappa_at_threshold)]
        table.add_row(*cells)
    print_table(table, f"{name} against human labels")


def print_calibration(result: CalibrationResult, output: str) -> None:
    """Print a calibration's quality in each language, and how the runs' toxicity differs under both scorers."""
    from xgray.score.calibration.curves import calibration_rows

    calibration = result.calibration
    table = new_table(
        "language", "pairs", ".5 lies at", "Spearman", "Kendall", "kappa raw", "kappa calibrated", "error calibrated"
    )
    for row in calibration_rows(calibration):
        if row.raw is None or row.calibrated is None:
            table.add_row(row.language, row.reason or "")
            continue
        attribute = f" {row.attribute}" if len(calibration.attributes) > 1 else ""
        raw, calibrated = row.raw, row.calibrated
        table.add_row(
            f"{row.language}{attribute}",
            f"{row.num_pairs:,}",
            *map(fraction, (row.threshold, raw.spearman, raw.kendall, raw.kappa)),
            *map(fraction, (calibrated.kappa, calibrated.mean_absolute_difference)),
        )
    source = f"{calibration.scorer} {calibration.scorer_version}"
    target = f"{calibration.target} {calibration.target_version}"
    print_table(table, f"{source} onto {target}; calibrated figures cross-validated")
    for code, curves in calibration.languages.items():
        for curve in curves.values():
            if curve.threshold.value is None:
                print_line(f"{code}: .5 lies nowhere: {curve.threshold.reason}")
    for name, effect in result.swaps.items():
        fitted = "; in-sample: the map was fitted on these texts" if name in result.in_sample else ""
        print_swap(f"{name}{fitted}", effect, calibration.target, calibration.scorer)
    for name in result.not_compared:
        print_line(f"{name}: not compared, it has no completions in {' '.join(calibration.languages)}")
    print_line(f"{output}: calibration {calibration.version} written. Use it with --score.calibration {output}")


def print_swap(title: str, effect: SwapEffect, first: str, second: str) -> None:
    """Print how a run's toxicity differs under two scorers, and whether the conclusions on a tuned model agree."""
    from xgray.score.calibration.scorer_swap import AVERAGE

    names = {str(key): metric.name for key, metric in METRICS.items()}
    table = new_table("model", "metric", "prompts", f"by {first}", f"by {second}", "difference", "left out")
    for row in effect.values:
        if row.language == AVERAGE:
            cells = (fraction(row.first), fraction(row.second), fraction(row.difference), f"{row.num_left_out:,}")
            table.add_row(row.model, names[row.metric], f"{row.num_prompts:,}", *cells)
    print_table(table, title)
    for model in dict.fromkeys(row.model for row in effect.changes):
        changes = [
            row
            for row in effect.changes
            if (row.model, row.metric) == (model, "emt")
            and row.language != AVERAGE
            and None not in (row.first.value, row.second.value)
        ]
        if not changes:
            print_line(f"{model}: no completion has a score of both")
            continue
        lost = [f"{row.language} ({row.first_says}, then {row.second_says})" for row in changes if not row.survives]
        same = f"in {len(changes) - len(lost)} of {len(changes)} languages"
        different = f"; not in {', '.join(lost)}" if lost else ""
        print_line(f"{model}: the conclusion on EMT's change is the same {same}{different}")
