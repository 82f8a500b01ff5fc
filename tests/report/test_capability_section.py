"""The report's section about capability, of answers that are known."""

import re

from tests.report.example_run import write_run
from xgray.evaluate.capability import comparison, summary
from xgray.report.build import build_report
from xgray.runs.manifest import StageFolder, StageResult

DRAWN = (0.95, 500, 0)


def made_rows(num_right):
    """Rows of tasks in which the first ``num_right[task]`` of 200 questions are answered right, and of a group."""
    rows = []
    for task, right in num_right.items():
        values = [1.0] * right + [0.0] * (200 - right)
        metric = {"value": right / 200, "stderr": 0.03, "higher_is_better": True}
        names = ("acc",) if task.startswith("m_mmlu") else ("acc", "acc_norm")
        whole = task == "some_group"
        metrics = {name: {**metric, "values": None if whole else values} for name in names}
        told = {"harness": "0.4.13", "group": "some_group" if task == "part" else None, "version": 2}
        rows.append(
            {"task": task, "num_fewshot": 0, "num_questions": 200, "questions": None if whole else task,
             "metrics": metrics, **told}
        )  # fmt: skip
    return rows


BEFORE = made_rows({"arc_vi": 70, "m_mmlu_vi": 60, "some_group": 100, "part": 100})
AFTER = made_rows({"arc_vi": 90, "m_mmlu_vi": 30, "some_group": 101, "part": 101})


def write_capability(run, rows):
    for model, own in rows.items():
        metrics = {"harness": "0.4.13", "confidence": 0.95, "tasks": summary(own, *DRAWN)}
        if model != "base":
            metrics["comparison"] = comparison(rows["base"], own, *DRAWN)
        place = StageFolder(run / "capability" / model, "capability", model)
        place.folder.write_json("metrics.json", metrics)
        place.finish({"version": 1}, StageResult({"num_tasks": 3}, device="cpu"))


def section_of(run, experiment):
    build_report(run, experiment)
    page = (run / "report").read_bytes("index.html").decode()
    found = re.search(r'<section id="capability">.*?</section>', page, re.DOTALL)
    return found and re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", found[0]))


def test_tasks_before_and_after_stand_in_the_report(tmp_path):
    run, experiment = write_run(tmp_path, capability={})
    write_capability(run, {"base": BEFORE, "dpo": AFTER})
    shown = section_of(run, experiment)
    assert "dpo: of 3 tasks, 1 became significantly better and 1 significantly worse." in shown
    assert "3 tasks of lm-evaluation-harness 0.4.13 with 600 questions." in shown
    assert re.search(r"arc_vi acc_norm \.3500 \[.*?\] \.4500 \[.*?\] \+\.1000 \[.*?\] .{3,6} ▲ better 200 0 ", shown)
    assert re.search(r"m_mmlu_vi acc \.3000 .*? −\.1500 .*? ▼ worse", shown)
    assert re.search(r"some_group acc \.5000 .*? \+\.0050 .*? not significant", shown)
    assert "2 of 7 differences are unpaired" in shown
    assert re.search(r"Tasks of the groups 2 .* part acc ", shown)
    assert "Paper, before" not in shown
    assert (run / "report" / "figures").exists("capability.pdf")


def test_published_values_stand_beside_those_of_the_papers_model(tmp_path):
    run, experiment = write_run(tmp_path, capability={}, model={"id": "bigscience/bloom-7b1"})
    write_capability(run, {"base": BEFORE, "dpo": AFTER})
    shown = section_of(run, experiment)
    assert re.search(r"arc_vi acc_norm .*? ▲ better \.3368 \.3393 200", shown)
    assert re.search(r"arc_vi acc \.3500 .*? ▲ better – – 200", shown)


def test_one_model_is_shown_without_a_comparison_and_none_without_a_section(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), capability={"limit": 200})
    assert section_of(run, experiment) is None
    write_capability(run, {"base": BEFORE})
    shown = section_of(run, experiment)
    assert "at most the first 200 of each task" in shown
    assert "p adjusted" not in shown


def test_tasks_of_a_group_without_a_row_stand_for_themselves(tmp_path):
    run, experiment = write_run(tmp_path, capability={})
    rows = {name: [row for row in own if row["task"] == "part"] for name, own in (("base", BEFORE), ("dpo", AFTER))}
    write_capability(run, rows)
    shown = section_of(run, experiment)
    assert "dpo: of 1 task, 0 became" in shown
    assert "1 task of lm-evaluation-harness 0.4.13 with 200 questions." in shown
    assert re.search(r"part acc \.5000 ", shown)
    assert "Tasks of the groups" not in shown
