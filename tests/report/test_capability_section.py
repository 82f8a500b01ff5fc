"""The report's section about capability, from answers that are known."""

from tests.report.example_run import write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.evaluate.capability import comparison, summary
from xgray.runs.manifest import StageFolder, StageResult

CONFIDENCE = 0.95


def task_rows(num_right):
    """Rows of tasks in which the first ``num_right[task]`` of 200 questions are answered right, and of a group."""
    rows = []
    for task, right in num_right.items():
        is_group = task == "some_group"
        metric = {
            "value": right / 200,
            "stderr": 0.03,
            "higher_is_better": True,
            "values": None if is_group else [1.0] * right + [0.0] * (200 - right),
        }
        names = ("acc",) if task.startswith("m_mmlu") else ("acc", "acc_norm")
        rows.append(
            {
                "task": task,
                "num_fewshot": 0,
                "num_questions": 200,
                "questions": None if is_group else task,
                "metrics": {name: dict(metric) for name in names},
                "harness": "0.4.13",
                "group": "some_group" if task == "part" else None,
                "version": 2,
            }
        )
    return rows


BEFORE = task_rows({"arc_vi": 70, "m_mmlu_vi": 60, "some_group": 100, "part": 100})
AFTER = task_rows({"arc_vi": 90, "m_mmlu_vi": 30, "some_group": 101, "part": 101})


def write_capability(run, rows):
    for model, tasks in rows.items():
        metrics = {"harness": "0.4.13", "confidence": 0.95, "tasks": summary(tasks, CONFIDENCE)}
        if model != "base":
            metrics["comparison"] = comparison(rows["base"], tasks, CONFIDENCE)
        stage = StageFolder(run / "capability" / model, "capability", model)
        stage.folder.write_json("metrics.json", metrics)
        stage.finish({"version": 1}, StageResult({"num_tasks": 3}, device="cpu"))


def values(row):
    """The cells of a row without their intervals."""
    return [cell.split(" [")[0] for cell in row]


def section_of(run, experiment):
    return page_without_figures(run, experiment).section("capability")


def test_tasks_before_and_after_are_shown(tmp_path):
    run, experiment = write_run(tmp_path, capability={})
    write_capability(run, {"base": BEFORE, "dpo": AFTER})
    section = parse(report_html(run, experiment, with_pdf=True)).section("capability")
    (answer,) = section.texts("p", "answer")
    assert answer.startswith("dpo: of 3 tasks, 1 became significantly better and 1 ")
    assert "lm-evaluation-harness 0.4.13 with 600 questions" in section.text
    assert "2 of 7 differences are unpaired" in section.text
    (row,) = section.rows_of("arc_vi", "acc_norm")
    assert [*values(row)[2:5], *row[6:]] == [".3500", ".4500", "+.1000", "▲ better", "200", "0"]
    assert all("[" in cell for cell in row[2:5])
    (row,) = section.rows_of("m_mmlu_vi", "acc")
    assert [values(row)[4], row[6]] == ["−.1500", "▼ worse"]
    (row,) = section.rows_of("some_group", "acc")
    assert [*values(row)[2:5], row[6]] == [".5000", ".5050", "+.0050", "not significant"]
    (group,) = section.all("details")
    assert [row[:2] for row in group.table_rows[1:]] == [["part", "acc"], ["part", "acc_norm"]]
    assert "Paper, before" not in section.texts("th")
    assert (run / "report" / "figures").exists("capability.pdf")


def test_published_values_stand_beside_those_of_the_papers_model(tmp_path):
    run, experiment = write_run(tmp_path, capability={}, model={"id": "bigscience/bloom-7b1"})
    write_capability(run, {"base": BEFORE, "dpo": AFTER})
    section = section_of(run, experiment)
    assert section.rows_of("arc_vi", "acc_norm")[0][-4:-1] == [".3368", ".3393", "200"]
    assert section.rows_of("arc_vi", "acc")[0][-4:-1] == ["–", "–", "200"]


def test_single_model_is_shown_without_a_comparison(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), capability={"limit": 200})
    write_capability(run, {"base": BEFORE})
    section = section_of(run, experiment)
    assert "first 200 of each task" in section.text
    assert not section.texts("p", "answer")
    assert section.rows_of("Task")[0] == ["Task", "Metric", "Value", "Questions", "Few-shot examples"]


def test_run_without_capability_has_no_section(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), capability={})
    assert section_of(run, experiment) is None


def test_tasks_of_a_group_without_a_row_stand_for_themselves(tmp_path):
    run, experiment = write_run(tmp_path, capability={})
    rows = {
        model: [row for row in tasks if row["task"] == "part"] for model, tasks in (("base", BEFORE), ("dpo", AFTER))
    }
    write_capability(run, rows)
    section = section_of(run, experiment)
    assert section.texts("p", "answer")[0].startswith("dpo: of 1 task, 0 became")
    assert "1 task of lm-evaluation-harness 0.4.13 with 200 questions" in section.text
    assert values(section.rows_of("part", "acc")[0])[2] == ".5000"
    assert not section.all("details")
