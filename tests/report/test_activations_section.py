"""The report's section about activations, from rows whose means and changes are known."""

import re

import numpy as np

from tests.report.example_run import write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.mechanism.activation_metrics import ActivationRows, activation_changes, activation_metrics
from xgray.runs.manifest import StageFolder, StageResult

MEANS = {"en": (0.1, -0.005), "de": (0.08, 0.0798), "ar": (0.01, 0.05)}
"""Mean activation before and after tuning."""
NEURONS = [[0, 7], [3, 12]]


def activation_rows(is_tuned, num_prompts):
    """Rows in which a prompt's two neurons are .01 below and above its mean, which differs from prompt to prompt."""
    offsets = np.linspace(-0.02, 0.02, num_prompts) * (-1) ** is_tuned
    return {
        language: ActivationRows(
            [f"{language}/{index}" for index in range(num_prompts)],
            np.float32([[means[is_tuned] + offset - 0.01, means[is_tuned] + offset + 0.01] for offset in offsets]),
            np.full(num_prompts, 20, np.int32),
        )
        for language, means in MEANS.items()
    }


def write_activations(run, models=("base", "dpo"), num_prompts=40):
    for model in models:
        rows = activation_rows(model != "base", num_prompts)
        metrics = {"neurons": NEURONS, "new_tokens": 20, "confidence": 0.95, **activation_metrics(rows, 0.95)}
        if model != "base":
            metrics["change"] = activation_changes(activation_rows(False, num_prompts), rows, 0.95)
        stage = StageFolder(run / "activations" / model, "activations", model)
        stage.folder.write_json("metrics.json", metrics)
        stage.finish({"version": 1}, StageResult({"num_prompts": 3 * num_prompts, "num_reused": 0}, device="cpu"))


def values(row):
    """The cells of a row without their intervals."""
    return [cell.split(" [")[0] for cell in row]


def test_means_changes_and_neurons_are_shown(tmp_path):
    run, experiment = write_run(tmp_path, activations={"neurons": NEURONS})
    write_activations(run)
    html = report_html(run, experiment, with_pdf=True)
    section = parse(html).section("activations")
    (answer,) = section.texts("p", "answer")
    # (.1 + .08 + .01) / 3 and (-.005 + .0798 + .05) / 3
    assert re.search(r"^dpo: .* 3 languages.* from \.0633 .* to \.0416 .*−\.0217, p <\.001", answer)
    assert re.search(r"fell significantly in 1 .* rose significantly in 1", answer)
    rows = [row for row in section.table_rows if row[0] in ("English", "German", "Arabic")]
    assert [values(row)[:4] for row in rows] == [
        ["English", ".1000", "−.0050", "−.1050"],
        ["German", ".0800", ".0798", "−.0002"],
        ["Arabic", ".0100", ".0500", "+.0400"],
    ]
    assert re.fullmatch(r"\.1000 \[\.0\d+, \.1\d+\]", rows[0][1])
    assert [row[5][0] for row in rows] == ["▼", "n", "▲"]  # lower, not significant, higher
    assert section.rows_of("3 / 12") == [["3 / 12", ".0733", ".0516", "−.0217"]]
    assert not [column for column in section.texts("th") if "Paper" in column]
    assert (run / "report" / "figures").exists("activations.pdf")
    assert 'id="activations-' in html  # the ids of an embedded figure begin with its name
    assert report_html(run, experiment) == html


def test_published_values_stand_beside_those_of_the_papers_model(tmp_path):
    run, experiment = write_run(tmp_path, activations={"neurons": NEURONS}, model={"id": "ai-forever/mGPT"})
    write_activations(run)
    section = page_without_figures(run, experiment).section("activations")
    (english,), (arabic,) = section.rows_of("English"), section.rows_of("Arabic")
    assert english[-3:] == [".1040", "−.0047", "40"]
    assert arabic[-3:] == ["–", "–", "40"]


def test_single_model_is_shown_without_a_comparison(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), activations={"neurons": NEURONS})
    write_activations(run, models=["base"])
    section = page_without_figures(run, experiment).section("activations")
    assert not section.texts("p", "answer")
    assert section.rows_of("Language") == [["Language", "Mean", "Prompts"]]


def test_run_without_activations_has_no_section(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), activations={"neurons": NEURONS})
    assert page_without_figures(run, experiment).section("activations") is None


def test_without_sources_the_section_says_why(tmp_path):
    run, experiment = write_run(tmp_path, probe={}, vectors={}, activations={}, intervene={})
    for label in ("activations/base", "activations/dpo", "intervene"):
        name, _, model = label.partition("/")
        stage = StageFolder(run / label, name, model or None)
        stage.folder.write_json("metrics.json", {"neurons": [], "reason": "no <sources>"})
        stage.finish({"version": 1}, StageResult({"num_neurons": 0}))
    page = page_without_figures(run, experiment)
    for key in ("activations", "intervene"):
        assert page.section(key).texts("p") == ["no <sources>."]
