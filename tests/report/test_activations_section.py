"""The report's section about activations, of rows whose means and changes are known."""

import re

import numpy as np

from tests.report.example_run import write_run
from xgray.mechanism.activation_metrics import ActivationRows, activation_changes, activation_metrics
from xgray.report.build import build_report
from xgray.runs.manifest import StageFolder, StageResult

MEANS = {"en": (0.1, -0.005), "de": (0.08, 0.0798), "ar": (0.01, 0.05)}
NEURONS = [[0, 7], [3, 12]]


def made_rows(at, num_prompts):
    """Every prompt's two neurons are a little above and below its mean, which differs from prompt to prompt."""
    spread = np.linspace(-0.02, 0.02, num_prompts) * (-1) ** at
    return {
        code: ActivationRows(
            [f"{code}/{index}" for index in range(num_prompts)],
            np.float32([[means[at] + one - 0.01, means[at] + one + 0.01] for one in spread]),
            np.full(num_prompts, 20, np.int32),
        )
        for code, means in MEANS.items()
    }


def write_activations(run, models=("base", "dpo"), num_prompts=40):
    for at, model in enumerate(models):
        rows = made_rows(min(at, 1), num_prompts)
        metrics = {"neurons": NEURONS, "new_tokens": 20, "confidence": 0.95, **activation_metrics(rows, 0.95, 500, 0)}
        if at:
            metrics["change"] = activation_changes(made_rows(0, num_prompts), rows, 0.95, 500, 0)
        place = StageFolder(run / "activations" / model, "activations", model)
        place.folder.write_json("metrics.json", metrics)
        place.finish({"version": 1}, StageResult({"num_prompts": 3 * num_prompts, "num_reused": 0}, device="cpu"))


def page_of(run, experiment):
    build_report(run, experiment)
    return (run / "report").read_bytes("index.html").decode()


def text_of(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html))


def test_means_changes_and_neurons_are_shown(tmp_path):
    run, experiment = write_run(tmp_path, activations={"neurons": NEURONS})
    write_activations(run)
    page = page_of(run, experiment)
    section = page[page.index('<section id="activations">') : page.index('<section id="examples">')]
    shown = text_of(section)
    # (.1 + .08 + .01) / 3 and (-.005 + .0798 + .05) / 3
    assert "dpo: averaged over 3 languages, the mean activation went from .0633" in shown
    assert "to .0416" in shown
    assert "change −.0217, p = .002" in shown
    assert "fell significantly in 1 of them and rose significantly in 1" in shown
    rows = re.findall(
        r"English .*? quieter|German .*? significant|Arabic .*? louder", shown[shown.index("p adjusted") :]
    )
    assert [row.split()[0] for row in rows] == ["English", "German", "Arabic"]
    assert re.match(r"English .1000 \[.0\d+, .1\d+\] −.0050 \[.*\] −.1050 ", rows[0])
    assert re.search(r"3 / 12 .0733 .0516 −.0217", shown)
    assert "Paper, before" not in shown
    assert 'id="activations-' in section
    assert (run / "report" / "figures").exists("activations.pdf")
    assert page_of(run, experiment) == page


def test_published_values_stand_beside_those_of_the_papers_model(tmp_path):
    run, experiment = write_run(tmp_path, activations={"neurons": NEURONS}, model={"id": "ai-forever/mGPT"})
    write_activations(run)
    shown = text_of(page_of(run, experiment))
    assert re.search(r"English .1000 .*? quieter .1040 −.0047 40 ", shown)
    assert re.search(r"Arabic .0100 .*? louder – – 40 ", shown)


def test_one_model_is_shown_without_a_comparison_and_none_without_a_section(tmp_path):
    run, experiment = write_run(tmp_path, variants=(), activations={"neurons": NEURONS})
    assert '<section id="activations">' not in page_of(run, experiment)
    write_activations(run, models=["base"])
    page = page_of(run, experiment)
    assert '<section id="activations">' in page
    assert "p adjusted" not in page[page.index('<section id="activations">') : page.index('<section id="examples">')]


def test_without_sources_the_section_says_why(tmp_path):
    run, experiment = write_run(tmp_path, probe={}, vectors={}, activations={}, intervene={})
    for label in ("activations/base", "activations/dpo", "intervene"):
        stage, _, model = label.partition("/")
        place = StageFolder(run / label, stage, model or None)
        place.folder.write_json("metrics.json", {"neurons": [], "reason": "no <sources>"})
        place.finish({"version": 1}, StageResult({"num_neurons": 0}))
    page = page_of(run, experiment)
    for key in ("activations", "intervene"):
        section = page[page.index(f'<section id="{key}">') :]
        assert '<p class="none">no &lt;sources&gt;.</p>' in section[: section.index("</section>")]
