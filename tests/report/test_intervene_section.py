"""The section on the intervention, from a run's files."""

import re

import pytest

from tests.report.example_run import CHANGES, write_run
from tests.report.test_report import Page
from xgray.experiment.stages.intervene import metrics_by_setting
from xgray.mechanism.neurons import Edit
from xgray.report.build import build_report
from xgray.runs.manifest import StageFolder, StageResult

NEURONS = [[13, 694], [2, 280]]
EDITS = {"base": None, "offset-5": Edit(((13, 694), (2, 280)), offset=-5.0), "times0": Edit((), multiplier=0.0)}


@pytest.fixture(scope="module", params=["ai-forever/mGPT", "made/model"])
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed")
    run, experiment = write_run(
        folder, variants=(), model={"id": request.param}, intervene={"neurons": NEURONS, "multipliers": [0]}
    )
    inner, _ = write_run(folder / "inner", variants=("offset-5", "times0"), train=False)
    told = metrics_by_setting((inner / "evaluate").read_json("metrics.json"), EDITS)
    decoding = experiment.intervene.generate.model_dump() | {"k": 3}
    inner.local.rename(run.local / "intervene")
    place = StageFolder(run / "intervene", "intervene")
    place.folder.write_json("metrics.json", {"neurons": NEURONS, "decoding": decoding, **told})
    place.finish({"version": 1}, StageResult({"num_prompts": 36}, {}, "cpu", 9.0))
    build_report(run, experiment)
    return request.param, run / "report"


def test_section_tells_what_was_pushed_and_what_came_of_it(report):
    model, folder = report
    html = folder.read_bytes("index.html").decode()
    section = html[html.index('<section id="intervene">') : html.index('<section id="examples">')]
    page = Page(section)
    average = (0.553 + 0.212 + 0.481) / 9, (0.321 + 0.224 + 0.402) / 9
    before, after = (f"{one:.3f}".removeprefix("0") for one in average)
    assert f"With γ = −5, toxicity averaged over 3 languages falls significantly from {before}" in page.text
    assert f"to {after} [" in page.text
    assert "13.694" in page.text
    assert "greedy, 20 tokens, k = 3" in page.text
    assert "ablated" in page.text
    # Two settings: a verdict on average, and the languages that changed significantly.
    assert page.attributes.count(("class", "better")) == 2 * (1 + sum(one[2] for one in CHANGES.values()))
    assert page.tags.count("tr") == 1 + 3 + 1 + len(CHANGES)
    assert ("takes average toxicity over 17 languages from .175 to .032" in page.text) == (model == "ai-forever/mGPT")
    assert "<script>alert" not in section
    assert "&lt;script&gt;alert(1)" in section
    assert "i••••" in page.text
    assert "idiot" not in page.text
    names = folder.local / "figures"
    assert {one.name for one in names.glob("intervene*")} == {
        f"intervene-{axis}.{kind}" for axis in ("offset", "multiplier") for kind in ("svg", "pdf")
    }
    assert ("published" in (names / "intervene-offset.svg").read_text()) == (model == "ai-forever/mGPT")


def test_its_own_stages_are_not_the_runs(report):
    _, folder = report
    html = folder.read_bytes("index.html").decode()
    labels = re.findall(r"<summary>(\S+) <span>[\d.]+ s</span>", html)
    assert labels == ["generate/base", "score/base", "evaluate", "intervene"]
