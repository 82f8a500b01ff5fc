"""Consoles and tables, and what several commands print: the summary of a run, its state, a machine's checks."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from xgray.report.metrics import CONSISTENCY, METRICS, TOXICITY, percent
from xgray.runs.progress import duration
from xgray.runs.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from xgray.cli.doctor import Check
    from xgray.evaluate.metrics_file import ConsistencyName, EvaluateMetrics
    from xgray.evaluate.robustness_file import RobustnessMetrics
    from xgray.experiment.plan import Plan
    from xgray.report.files import RunFiles
    from xgray.runs.status import RunState

SILENT: dict[Literal["num_refused", "num_empty"], str] = {"num_refused": "refused", "num_empty": "empty"}
"""Columns of completions that decline or say nothing, shown where they occur."""
LOG_WIDTH = 170
"""Columns of a table where the output is no terminal and COLUMNS is not set: a log has no width to fit."""


def plain_console() -> Console:
    """Return a console that prints text as it is, but for what would act on the terminal.

    rich takes ``[cpu]`` for markup and ``:100:`` for an emoji.
    """
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    console = PlainConsole(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


def new_table(*columns: str, text_columns: Collection[str] = ()) -> Table:
    """Return an empty table: text in the first column and in ``text_columns``, numbers at the right in all others.

    Where the terminal is too narrow, cells are wrapped; nothing is cut.
    """
    from rich.table import Table

    table = Table()
    for position, name in enumerate(columns):
        is_text = position == 0 or name in text_columns
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    return table


def print_table(table: Table, title: str = "") -> None:
    """Print a table below its title."""
    console = plain_console()
    if title:
        console.print(title, style="italic", soft_wrap=True)
    console.print(table)


def print_line(line: str) -> None:
    """Print a line of text as it is, however long."""
    plain_console().print(line, soft_wrap=True)


def print_summary(plan: Plan, names: Collection[str]) -> None:
    """Print the metrics of a run, if its evaluation is among the stages ``names``, and a line for each of these."""
    evaluate, report = plan.stage("evaluate"), plan.stage("report")
    if evaluate.is_finished and {"evaluate", "report"} & set(names):
        from xgray.report.files import RunFiles
        from xgray.report.points import shown_files
        from xgray.runs.resolved import reading_files

        with reading_files(plan.run):
            files = shown_files(RunFiles(plan.run))
            _print_metrics(files.metrics)
            print_quality(files)
    robustness = plan.find("robustness")
    if robustness and robustness.is_finished and {"robustness", "evaluate", "report"} & set(names):
        print_robustness(robustness.folder.read_mapping("metrics.json"))
    width = max(18, *(len(planned.label) for planned in plan.stages))
    for planned in plan.stages:
        manifest = planned.place.manifest()
        if manifest and planned.stage.command in names:
            counts = ", ".join(f"{name.removeprefix('num_')} {value}" for name, value in manifest["counts"].items())
            print_line(f"{planned.label:<{width}} {manifest['seconds']:>8.1f} s  {counts}")
    if report.is_finished and "report" in names:
        print_line(f"report: {report.folder / 'index.html'}")
    else:
        print_line(f"run: {plan.run}")


def _print_metrics(metrics: EvaluateMetrics) -> None:
    table = new_table("model", *(metric.title for metric in METRICS.values()))
    for model, figures in metrics["models"].items():
        table.add_row(model, *(metric.with_interval(figures["average"][key]) for key, metric in METRICS.items()))
    num_languages = len(metrics["languages"])
    print_table(table, f"Average over {num_languages} languages, {metrics['confidence']:.0%} intervals")
    if any("bounds" in figures["average"] for figures in metrics["models"].values()):
        _print_bounds(metrics)
    if "consistency" in metrics:
        _print_languages(metrics)
    if unvalidated := metrics.get("unvalidated"):
        print_line(f"the scorer was not validated on: {' '.join(unvalidated)}")
    for model, comparison in metrics["comparisons"].items():
        print_line(f"{model}: {_changes_text(comparison['languages'])}")


def print_quality(files: RunFiles) -> None:
    """Print how well the scorer agrees with people, over all its languages."""
    from xgray.evaluate.agreement_file import AVERAGE
    from xgray.report.summary import agreement_in_words

    name = files.scorer.get("scorer", "the scorer")
    if average := files.agreement.get(AVERAGE):
        words = agreement_in_words(average, files.agreement_data)
        print_line(f"{name} against people, average over languages: {words}")
    elif files.auc:
        print_line(f"{name}: how well it agrees with people is not known; its AUC was measured on easy sentences")


def print_robustness(metrics: RobustnessMetrics) -> None:
    """Print toxicity under every scorer, how far scorers agree, and which findings hold under all of them."""
    from xgray.report.summary import robustness_in_words

    table = new_table("scorer", "model", *(METRICS[name].title for name in TOXICITY), text_columns=["model"])
    for scorer, models in metrics["models"].items():
        for model, values in models.items():
            cells = [METRICS[name].with_interval(values["average"][name]) for name in TOXICITY]
            table.add_row(scorer, model, *cells)
    print_table(table, "Under every scorer, average over the languages that it scored")
    for name, facts in metrics["scorers"].items():
        if facts["not_scored"]:
            print_line(f"{name} did not score, as it was not validated there: {' '.join(facts['not_scored'])}")
        if facts["unvalidated"]:
            print_line(f"{name} was not validated on: {' '.join(facts['unvalidated'])}")
    correlation, share = METRICS["emt"], METRICS["tox_prob"]
    for pair in metrics["agreement"]:
        average = pair["average"]
        print_line(
            f"{' and '.join(pair['scorers'])} agree: Spearman {correlation.with_interval(average['spearman'])}, "
            f"same side of {metrics['threshold']:g} {share.with_interval(average['same_side'])} %"
        )
    for variant in metrics["findings"]:
        _print_findings(metrics, variant)
        print_line(f"{variant}: {robustness_in_words(metrics, variant)}")


def _print_findings(metrics: RobustnessMetrics, variant: str) -> None:
    """Print each language's change of EMT under every scorer, and under which of them it is significant."""
    from xgray.report.summary import finding_label

    metric, found = METRICS["emt"], metrics["findings"][variant]["emt"]
    table = new_table("language", *metrics["scorers"], "significant under", text_columns=["significant under"])
    for language in [*metrics["languages"], None]:
        finding = found["average"] if language is None else found["languages"].get(language)
        row = ["average" if language is None else language]
        for of_scorer in metrics["comparisons"].values():
            changes = of_scorer[variant]
            change = (changes["average"] if language is None else changes["languages"].get(language, {})).get("emt")
            row.append(metric.text(None if change is None else change["difference"], signed=True))
        table.add_row(*row, finding_label(finding) if finding else "not tested")
    print_table(table, f"{variant}: change of EMT under every scorer")


def _print_bounds(metrics: EvaluateMetrics) -> None:
    """Print between which values the averages lie, whatever the missing scores are."""
    table = new_table("model", "scored", *(METRICS[name].title for name in TOXICITY))
    for model, figures in metrics["models"].items():
        bounds = figures["average"].get("bounds", {})
        share = percent(figures["average"]["coverage"])
        table.add_row(model, share, *(METRICS[name].bounds(bounds.get(name)) for name in TOXICITY))
    print_table(table, "Bounds: if all missing scores were 0, and if they all were 1")


def _print_languages(metrics: EvaluateMetrics) -> None:
    """Print how many completions are in their prompt's language and how toxic these are; refused and empty ones."""
    names: tuple[ConsistencyName, ...] = ("consistent", "unknown", "latin")
    of_consistent: tuple[ConsistencyName, ...] = ("emt", "tox_prob", "avg_tox")
    averages = {model: figures["average"] for model, figures in metrics["models"].items()}
    silent: list[Literal["num_refused", "num_empty"]] = [
        name for name in SILENT if any(average.get(name) for average in averages.values())
    ]
    columns = [CONSISTENCY[name].title for name in names] + [
        f"{CONSISTENCY[name].title} of these" for name in of_consistent
    ]
    table = new_table("model", *columns, *(SILENT[name] for name in silent))
    for model, of_model in metrics["consistency"]["models"].items():
        values = of_model["average"]
        shares = [CONSISTENCY[name].with_interval(values[name]) for name in names]
        toxicity = [CONSISTENCY[name].text(values[name]["value"]) for name in of_consistent]
        table.add_row(model, *shares, *toxicity, *(str(averages[model].get(name, "")) for name in silent))
    print_table(table, f"Language of the completions, by {metrics['consistency']['identifier']}")
    for model, comparison in metrics["consistency"]["comparisons"].items():
        fell = [
            code
            for code, changes in comparison["languages"].items()
            if changes["consistent"]["significant"] and (changes["consistent"]["difference"] or 0) < 0
        ]
        if fell:
            print_line(f"{model}: fewer completions in the prompt's language, significantly, in: {' '.join(fell)}")


def _changes_text(languages: dict[str, dict[Any, Any]]) -> str:
    """In which languages EMT changed significantly, and how."""
    changes = {code: change["emt"] for code, change in languages.items() if change["emt"].get("difference") is not None}
    fell = [code for code, change in changes.items() if change["significant"] and change["difference"] < 0]
    rose = [code for code, change in changes.items() if change["significant"] and change["difference"] > 0]
    same = [code for code in changes if code not in fell and code not in rose]
    return (
        f"EMT fell in {len(fell)} of {len(languages)} languages (false discovery rate 5 %); "
        f"rose in: {' '.join(rose) or 'none'}; no significant change in: {' '.join(same) or 'none'}"
    )


def print_state(run: RunState) -> None:
    """Print the state of a run: a row for each stage, the driver, and the errors of stages that failed."""
    table = new_table("stage", "state", "done", "errors", "rate", "time left", "attempts", text_columns=["state"])
    for stage in run.stages:
        total = "?" if stage.num_total is None else stage.num_total
        rate = "" if stage.rate is None else f"{stage.rate:.2f}/s"
        left = "" if stage.eta_seconds is None else duration(stage.eta_seconds)
        if stage.standstill_seconds is not None:  # at the rate of a standstill the time left means nothing
            left = f"no progress for {duration(stage.standstill_seconds)}"
        errors = "" if stage.num_errors is None else str(stage.num_errors)
        attempts = str(stage.num_attempts or "")
        table.add_row(stage.label, stage.state, f"{stage.num_done}/{total}", errors, rate, left, attempts)
    print_table(table, run.run)
    if run.driver:
        print_line(f"{'driver' if run.driver_alive else 'no driver; the last one was killed'}: {run.driver}")
    for stage in run.stages:
        if stage.error:
            print_line(f"{stage.label}: {stage.error}")


def print_checks(checks: list[Check]) -> None:
    """Print what was found of a machine, a row for each check."""
    from rich.text import Text

    table = new_table("part", "state", "found", "remedy", text_columns=["state", "found", "remedy"])
    colors = {"ok": "green", "degraded": "yellow", "missing": "red"}
    for check in checks:
        table.add_row(check.name, Text(check.status, colors[check.status]), check.detail, check.remedy)
    print_table(table)
