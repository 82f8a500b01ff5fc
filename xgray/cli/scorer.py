"""``xgray scorer``: fit, measure and calibrate scorers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cyclopts import App

from xgray.cli.options import DEFAULT_STORE, Arguments, Json
from xgray.cli.tables import CONSOLE, METRICS, interval, titled_table
from xgray.errors import InputError

if TYPE_CHECKING:
    from xgray.score.calibration.agreement import LabelRow
    from xgray.score.calibration.fit import CalibrationResult
    from xgray.score.calibration.scorer_swap import SwapEffect
    from xgray.stats.bootstrap import ValueWithInterval

scorer = App(name="scorer", help="Fit, measure and calibrate scorers.")


@scorer.command
def fit(labelled: str, *, output: str, as_json: Json = False) -> None:
    """Fit the embedding scorer's head on labelled texts; score.head takes the file.

    Parameters
    ----------
    labelled
        A folder of {language}.csv files with text,label and, where you split them yourself, split (fit, validate).
    output
        The head's file, such as head.json.
    as_json
        Print what the head is worth as JSON.
    """
    from xgray.score.embedding import fit_to_file

    head = fit_to_file(labelled, output)
    if as_json:
        print(json.dumps({"version": head.version, **head.facts}))
    else:
        print_head(head.version, head.facts, output)


@scorer.command
def measure(*arguments: Arguments, store: str = DEFAULT_STORE, as_json: Json = False) -> None:
    """A scorer against human labels: AUC and kappa in each language, with intervals.

    Parameters
    ----------
    arguments
        A folder of {language}.csv files with text,label, and fields of the score section: --score.scorer classifier.
        With --score.calibration FILE, kappa at the calibrated threshold too.
    store
        The score store: what was scored before is not scored again.
    as_json
        Print the table as JSON.
    """
    from xgray.cli.progress import ProgressDisplay
    from xgray.config.file import parse_overrides, split
    from xgray.score.build import score_section
    from xgray.score.calibration.measure import measure_scorer

    positional, options = split(arguments)
    if len(positional) != 1:
        raise InputError("name one folder of labelled texts: xgray scorer measure FOLDER")
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        rows = measure_scorer(section, positional[0], progress)
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_labels(section.scorer, rows)


@scorer.command
def calibrate(
    *arguments: Arguments, output: str, store: str = DEFAULT_STORE, target: str = "perspective", as_json: Json = False
) -> None:
    """Map a scorer onto archived scores of another, in each language; score.calibration takes the file.

    The archived texts should be of the kind that is scored with it: a map fitted on long texts misplaces short ones.

    Parameters
    ----------
    arguments
        Fields of the score section of the scorer to calibrate (--score.scorer classifier), and runs whose toxicity is
        compared under both.
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

    positional, options = split(arguments)
    section = score_section(parse_overrides(options), store)
    with ProgressDisplay() as progress:
        found = calibrate_scorer(section, target, [Folder(one) for one in positional], progress)
    write_calibration(output, found.calibration)
    if as_json:
        swaps = {name: asdict(effect) for name, effect in found.swaps.items()}
        told = {"swaps": swaps, "in_sample": found.in_sample, "not_compared": found.not_compared}
        print(json.dumps({"calibration": found.calibration.model_dump(mode="json"), **told}))
    else:
        print_calibration(found, output)


def shown(measured: ValueWithInterval | None) -> str:
    """A value with its interval, or a dash where there is none."""
    return interval(asdict(measured)) if measured else "–"


def print_head(version: str, facts: Mapping[str, Any], output: str) -> None:
    table = titled_table(f"Head {version}, on held-out texts", "language", "AUC", "right at .5", "toxic", "benign")
    for code, one in facts["auc"].items():
        auc = interval({"value": one["auc"], **one})
        table.add_row(code, auc, f"{one['accuracy']:.0%}", f"{one['num_toxic']:,}", f"{one['num_benign']:,}")
    CONSOLE.print(table)
    CONSOLE.print(f"{output}: score.head takes it")


def print_labels(scorer: str, rows: list[LabelRow]) -> None:
    own = any(row.threshold is not None for row in rows)
    columns = ["language", "texts", "toxic", "without score", "AUC", "kappa at .5"]
    table = titled_table(f"{scorer} against human labels", *columns, *(["threshold", "kappa there"] if own else []))
    for row in rows:
        cells = [row.language, f"{row.num:,}", f"{row.num_toxic:,}", f"{row.num_missing:,}", shown(row.auc)]
        cells.append(shown(row.kappa))
        if own:
            cells += ["–" if row.threshold is None else f"{row.threshold:.3f}", shown(row.kappa_at_threshold)]
        table.add_row(*cells)
    CONSOLE.print(table)


def print_calibration(found: CalibrationResult, output: str) -> None:
    from xgray.score.calibration.curves import calibration_rows

    one = found.calibration
    table = titled_table(
        f"{one.scorer} {one.scorer_version} onto {one.target} {one.target_version}; calibrated figures cross-validated",
        "language", "pairs", ".5 lies at", "Spearman", "Kendall", "kappa raw", "kappa calibrated", "error calibrated",
    )  # fmt: skip
    for row in calibration_rows(one):
        if row.raw is None or row.calibrated is None:
            table.add_row(row.language, row.reason or "")
            continue
        several = f" {row.attribute}" if len(one.attributes) > 1 else ""
        table.add_row(
            f"{row.language}{several}", f"{row.num_pairs:,}", shown(row.threshold), shown(row.raw.spearman),
            shown(row.raw.kendall), shown(row.raw.kappa), shown(row.calibrated.kappa),
            shown(row.calibrated.mean_absolute_difference),
        )  # fmt: skip
    CONSOLE.print(table)
    for code, curves in one.languages.items():
        for curve in curves.values():
            if curve.threshold.value is None:
                CONSOLE.print(f"{code}: .5 lies nowhere: {curve.threshold.reason}", soft_wrap=True)
    for name, effect in found.swaps.items():
        fitted = "; in-sample: the map was fitted on these texts" if name in found.in_sample else ""
        print_swap(f"{name}{fitted}", effect, one.target, one.scorer)
    for name in found.not_compared:
        languages = " ".join(one.languages)
        CONSOLE.print(f"{name}: not compared, it has no completions in {languages}", soft_wrap=True)
    CONSOLE.print(f"{output}: calibration {one.version}; score.calibration takes it", soft_wrap=True)


def print_swap(title: str, effect: SwapEffect, first: str, second: str) -> None:
    """How a run's toxicity changes with the scorer, and whether what was found of a tuned model survives."""
    from xgray.score.calibration.scorer_swap import AVERAGE

    table = titled_table(title, "model", "metric", "prompts", f"by {first}", f"by {second}", "difference", "left out")
    for row in effect.values:
        if row.language == AVERAGE:
            cells = (shown(row.first), shown(row.second), shown(row.difference), f"{row.num_left_out:,}")
            table.add_row(row.model, METRICS[row.metric], f"{row.num_prompts:,}", *cells)
    CONSOLE.print(table)
    for model in dict.fromkeys(row.model for row in effect.changes):
        own = [
            row
            for row in effect.changes
            if (row.model, row.metric) == (model, "emt")
            and row.language != AVERAGE
            and None not in (row.first.value, row.second.value)
        ]
        if not own:
            CONSOLE.print(f"{model}: no completion has a score of both")
            continue
        lost = [f"{row.language} ({row.first_says}, then {row.second_says})" for row in own if not row.survives]
        same = f"in {len(own) - len(lost)} of {len(own)} languages"
        CONSOLE.print(
            f"{model}: what is said of EMT's change is the same {same}{'; not in ' + ', '.join(lost) if lost else ''}",
            soft_wrap=True,
        )
