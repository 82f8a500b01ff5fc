"""What the command line prints: the summary of a run, its state, and the doctor's findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xgray.runs.progress import duration

if TYPE_CHECKING:
    from xgray.cli.doctor import Check
    from xgray.experiment.plan import Plan
    from xgray.runs.status import RunState


METRICS = {
    "emt": "EMT",
    "tox_prob": "ToxProb",
    "avg_tox": "AvgTox",
    "perplexity": "PPL",
    "dist_1": "Dist-1",
    "dist_2": "Dist-2",
    "dist_3": "Dist-3",
}


def interval(metric: dict[str, Any]) -> str:
    """``.512 [.480, .541]``, or a dash where there is no value."""
    if metric["value"] is None:
        return "–"
    digits = 3 if metric["value"] < 10 else 1
    low, high = (f"{metric[end]:.{digits}f}" if metric[end] is not None else "–" for end in ("low", "high"))
    return f"{metric['value']:.{digits}f} [{low}, {high}]"


def plain_console() -> Console:
    """Prints what users and libraries wrote as it is; rich takes ``[cpu]`` for markup and ``:100:`` for an emoji."""
    return Console(markup=False, emoji=False, highlight=False)


def print_summary(plan: Plan, stages: tuple[str, ...]) -> None:
    console = plain_console()
    if plan.stage("evaluate").is_finished and {"evaluate", "report"} & set(stages):
        _print_metrics(console, plan.stage("evaluate").folder.read_json("metrics.json"))
    for one in plan.stages:
        manifest = one.place.manifest()
        if manifest and one.name in stages:
            counts = ", ".join(f"{name.removeprefix('num_')} {value}" for name, value in manifest["counts"].items())
            line = f"{one.label:<18} {manifest['seconds']:>8.1f} s  {counts}"
            console.print(line, soft_wrap=True)
    if plan.stage("report").is_finished and "report" in stages:
        console.print(f"report: {plan.stage('report').folder / 'index.html'}", soft_wrap=True)
    else:
        console.print(f"run: {plan.run}", soft_wrap=True)


def _print_metrics(console: Console, metrics: dict[str, Any]) -> None:
    title = f"Average over {len(metrics['languages'])} languages, {metrics['confidence']:.0%} bootstrap intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in METRICS.values():
        table.add_column(name, justify="right")
    for model, figures in metrics["models"].items():
        table.add_row(model, *(interval(figures["average"][key]) for key in METRICS))
    console.print(table)
    if metrics["unvalidated"]:
        unvalidated = " ".join(metrics["unvalidated"])
        console.print(f"the scorer was not validated on: {unvalidated}", soft_wrap=True)
    for model, comparison in metrics["comparisons"].items():
        languages = comparison["languages"]
        changes = {code: one["emt"] for code, one in languages.items() if one["emt"].get("difference") is not None}
        less = [code for code, one in changes.items() if one["significant"] and one["difference"] < 0]
        more = [code for code, one in changes.items() if one["significant"] and one["difference"] > 0]
        rest = [code for code in changes if code not in less and code not in more]
        console.print(
            f"{model}: EMT fell in {len(less)} of {len(languages)} languages (false discovery rate 5 %); "
            f"rose in: {' '.join(more) or 'none'}; no significant change in: {' '.join(rest) or 'none'}",
            soft_wrap=True,
        )


def print_state(run: RunState) -> None:
    table = Table(title=run.run, title_justify="left")
    for name in ("stage", "state", "done", "errors", "rate", "time left", "attempts"):
        table.add_column(name, justify="left" if name in ("stage", "state") else "right")
    for one in run.stages:
        total = "?" if one.num_total is None else one.num_total
        rate = "" if one.rate is None else f"{one.rate:.2f}/s"
        left = "" if one.eta_seconds is None else duration(one.eta_seconds)
        if one.standstill_seconds is not None:  # at the rate of a standstill the time left says nothing
            left = f"no progress for {duration(one.standstill_seconds)}"
        errors = "" if one.num_errors is None else str(one.num_errors)
        table.add_row(one.label, one.state, f"{one.num_done}/{total}", errors, rate, left, str(one.num_attempts or ""))
    console = plain_console()
    console.print(table)
    if run.driver:
        alive = "driver" if run.driver_alive else "no driver; the last one was killed"
        console.print(f"{alive}: {run.driver}", soft_wrap=True)
    for one in run.stages:
        if one.error:
            console.print(f"{one.label}: {one.error}", soft_wrap=True)


def print_checks(checks: list[Check]) -> None:
    table = Table()
    for name in ("part", "state", "found", "remedy"):
        table.add_column(name)
    colors = {"ok": "green", "degraded": "yellow", "missing": "red"}
    for check in checks:
        table.add_row(check.name, Text(check.status, colors[check.status]), check.detail, check.remedy)
    plain_console().print(table)


CONSOLE = plain_console()
if not CONSOLE.is_terminal:
    CONSOLE.width = 170  # a log has no width that tables must fit


def titled_table(title: str, *columns: str) -> Table:
    CONSOLE.print(title, style="italic", soft_wrap=True)
    table = Table()
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 else "right")
    return table
