"""The report's section about the intervention, from a run's files."""

import pytest

from tests.report.example_run import CHANGES, write_run
from tests.report.page import parse, report_html
from xgray.experiment.stages.intervene import metrics_by_setting
from xgray.mechanism.neurons import Edit
from xgray.runs.manifest import StageFolder, StageResult

NEURONS = [[13, 694], [2, 280]]
EDITS = {"base": None, "offset-5": Edit(((13, 694), (2, 280)), offset=-5.0), "times0": Edit((), multiplier=0.0)}


@pytest.fixture(scope="module", params=["ai-forever/mGPT", "made/model"])
def report(request, tmp_path_factory):
    """The model's id and the report's folder."""
    folder = tmp_path_factory.mktemp("intervention")
    run, experiment = write_run(
        folder, variants=(), model={"id": request.param}, intervene={"neurons": NEURONS, "multipliers": [0]}
    )
    inner, _ = write_run(folder / "inner", variants=("offset-5", "times0"), train=False)
    metrics = metrics_by_setting((inner / "evaluate").read_json("metrics.json"), EDITS)
    decoding = experiment.intervene.generate.model_dump() | {"k": 3}
    inner.local.rename(run.local / "intervene")
    stage = StageFolder(run / "intervene", "intervene")
    stage.folder.write_json("metrics.json", {"neurons": NEURONS, "decoding": decoding, **metrics})
    stage.finish({"version": 1}, StageResult({"num_prompts": 36}, {}, "cpu", 9.0))
    report_html(run, experiment, with_pdf=request.param == "made/model")
    return request.param, run / "report"


@pytest.fixture
def page(report):
    return parse(report[1].read_bytes("index.html").decode())


def test_edits_and_their_effects_are_shown(page):
    section = page.section("intervene")
    (answer,) = section.texts("p", "answer")
    averages = (0.553 + 0.212 + 0.481) / 9, (0.321 + 0.224 + 0.402) / 9
    before, after = (f"{average:.3f}".removeprefix("0") for average in averages)
    assert answer.startswith("With γ = −5, ")
    assert f"3 languages falls significantly from {before} [" in answer
    assert f"to {after} [" in answer
    assert section.texts("code") == ["13.694", "2.280"]
    assert section.facts["Decoding"] == "greedy, 20 tokens, k = 3"
    assert section.facts["Prompts"] == "12 in 3 languages"
    # Of each of the two edits, a verdict on the average, and the languages that changed significantly.
    num_significant = sum(significant for _, _, significant in CHANGES.values())
    assert len(section.all("td", "better")) == 2 * (1 + num_significant)
    assert [row[0] for row in section.table_rows][:4] == ["Setting", "not edited", "γ = −5", "ablated"]
    assert len(section.table_rows) == 1 + 3 + 1 + len(CHANGES)


def test_published_values_are_shown_for_the_papers_model_alone(report, page):
    model, folder = report
    is_of_paper = model == "ai-forever/mGPT"
    notes = [note for note in page.section("intervene").texts("p", "note") if ".175" in note and ".032" in note]
    assert len(notes) == is_of_paper
    svg = (folder / "figures").read_bytes("intervene-offset.svg").decode()
    assert ("published" in svg) == is_of_paper


def test_figures_lie_beside_the_page(report):
    names = (report[1] / "figures").names()
    assert [name for name in names if name.startswith("intervene")] == [
        f"intervene-{kind}.{suffix}" for kind in ("multiplier", "offset") for suffix in ("pdf", "svg")
    ]


def test_completions_are_escaped_and_masked(report, page):
    html = report[1].read_bytes("index.html").decode()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "i••••" in page.section("intervene").text
    assert "idiot" not in page.section("intervene").text


def test_the_inner_stages_are_not_the_runs(page):
    labels = [summary.split()[0] for summary in page.section("provenance").texts("summary")]
    assert labels[:4] == ["generate/base", "score/base", "evaluate", "intervene"]
    assert len(labels) == 5  # and the experiment file
