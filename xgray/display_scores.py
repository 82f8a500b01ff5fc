"""What the commands of scores and scorers print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.table import Table

from xgray.display import METRICS, interval, plain_console

if TYPE_CHECKING:
    from xgray.bootstrap import Measured
    from xgray.evaluate.swap import SwapEffect
    from xgray.score.agreement import LabelRow
    from xgray.scoring import Archiving, Calibrated

CONSOLE = plain_console()
if not CONSOLE.is_terminal:
    CONSOLE.width = 170  # a log has no width that tables must fit


def shown(measured: Measured | None) -> str:
    """A value with its interval, or a dash where there is none."""
    return interval(asdict(measured)) if measured else "–"


def _long(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes"


def _table(title: str, *columns: str) -> Table:
    CONSOLE.print(title, style="italic", soft_wrap=True)
    table = Table()
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 else "right")
    return table


def print_estimate(plan: Archiving) -> None:
    """What is left to archive, and whether there is time for it."""
    from xgray.score.archive import CLOSES, LAST_DAY

    told, rate = plan.estimate, plan.section.execution.requests_per_second
    table = _table(
        f"To be scored by {plan.section.scorer} at {rate:g} requests a second",
        "language", "prompts", "texts", "prompts in time",
    )  # fmt: skip
    for code, number in told.num_prompts.items():
        table.add_row(code, f"{number:,}", f"{told.num_texts[code]:,}", f"{told.in_time[code]:,}")
    totals = (sum(one.values()) for one in (told.num_prompts, told.num_texts, told.in_time))
    table.add_row("all", *(f"{number:,}" for number in totals), end_section=True)
    CONSOLE.print(table)
    ends = datetime.now(UTC) + timedelta(seconds=told.seconds)
    late = " That is too late." if ends > CLOSES else ""
    CONSOLE.print(
        f"{plan.num_known:,} texts are in the store already. The rest takes {_long(told.seconds)}, until "
        f"{ends:%Y-%m-%d %H:%M} UTC; the Perspective API closes on {LAST_DAY}.{late}",
        soft_wrap=True,
    )


def print_archive(plan: Archiving, missing: Counter[str]) -> None:
    total = sum(plan.estimate.num_texts.values())
    CONSOLE.print(
        f"{total - missing.total():,} of {total:,} texts scored; the store is {plan.section.execution.store}",
        soft_wrap=True,
    )
    for reason, number in missing.most_common():
        CONSOLE.print(f"  without a score: {number:,}  {reason}")


def print_head(version: str, facts: Mapping[str, Any], output: str) -> None:
    table = _table(f"Head {version}, on held-out texts", "language", "AUC", "right at .5", "toxic", "benign")
    for code, one in facts["auc"].items():
        auc = interval({"value": one["auc"], **one})
        table.add_row(code, auc, f"{one['accuracy']:.0%}", f"{one['num_toxic']:,}", f"{one['num_benign']:,}")
    CONSOLE.print(table)
    CONSOLE.print(f"{output}: score.head takes it")


def print_labels(scorer: str, rows: list[LabelRow]) -> None:
    own = any(row.threshold is not None for row in rows)
    columns = ["language", "texts", "toxic", "without score", "AUC", "kappa at .5"]
    table = _table(f"{scorer} against human labels", *columns, *(["threshold", "kappa there"] if own else []))
    for row in rows:
        cells = [row.language, f"{row.num:,}", f"{row.num_toxic:,}", f"{row.num_missing:,}", shown(row.auc)]
        cells.append(shown(row.kappa))
        if own:
            cells += ["–" if row.threshold is None else f"{row.threshold:.3f}", shown(row.kappa_at_threshold)]
        table.add_row(*cells)
    CONSOLE.print(table)


def print_calibration(found: Calibrated, output: str) -> None:
    from xgray.score.calibration import calibration_rows

    one = found.calibration
    table = _table(
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
    from xgray.evaluate.swap import AVERAGE

    table = _table(title, "model", "metric", "prompts", f"by {first}", f"by {second}", "difference", "left out")
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
