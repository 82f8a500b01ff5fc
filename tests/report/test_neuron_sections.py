"""The sections about the probe and the value vectors, from files as their stages leave them."""

import pytest
from markupsafe import Markup

from tests.report.example_run import write_run
from tests.report.test_report import Page
from xgray.report.build import build_report, render
from xgray.report.files import RunFiles
from xgray.report.sections import probe as probe_section
from xgray.report.sections import vectors as vectors_section
from xgray.runs.manifest import StageFolder, StageResult

MEASURED = {"auc": 0.912, "low": 0.87, "high": 0.94, "num_toxic": 40, "num_benign": 50, "accuracy": 0.7}
PROBE = {
    "data": "embedded",
    "test": "embedded",
    "protocol": "corrected",
    "learning_rate": 1e-4,
    "hidden_size": 32,
    "num_texts": 1234,
    "num_toxic": 300,
    "num_fit": 1100,
    "num_truncated": 17,
    "num_test_left_out": 83,
    "train_loss": [0.69, 0.51],
    "validation_loss": [0.6, 0.7],
    "epoch": 2,
    "validation": {
        "num_toxic": 30,
        "num_benign": 104,
        "accuracy": {"value": 0.8731, "low": 0.81, "high": 0.92},
        "majority": 0.776,
        "auc": {"value": 0.901, "low": 0.85, "high": 0.94},
        "loss": 0.4,
        "calibration_error": 0.056,
        "bins": [
            {"low": 0.0, "high": 0.1, "num_texts": 100, "mean_probability": 0.06, "share_toxic": 0.05},
            {"low": 0.8, "high": 0.9, "num_texts": 34, "mean_probability": 0.86, "share_toxic": 0.7},
        ],
    },
    "transfer": {
        "en": MEASURED,
        "de": {**MEASURED, "auc": 0.741},
        "ar": {**MEASURED, "auc": None, "low": None, "high": None, "reason": "toxic and benign texts are both needed"},
    },
}
LAYER = {"num_neurons": 48, "mean": 0.0, "max": 0.4, "num_potential": 0, "num_sources": 0}


def vector(layer, index, tokens, mean, source):
    interval = {"value": mean, "low": mean - 0.01, "high": mean + 0.01}
    return {
        "layer": layer, "index": index, "cosine": 0.31, "tokens": tokens, "mean_activation": interval, "source": source,
    }  # fmt: skip


VECTORS = {
    "sources": [[2, 7]],
    "num_neurons": 144,
    "num_prompts": 20,
    "new_tokens": 20,
    "confidence": 0.95,
    "resamples": 2000,
    "vectors": [
        vector(2, 7, ["␣idiot", "<script>", "Idiot", "غبي", "␣дурак", "<0xE7><0xAC>"], 0.052, True),
        vector(1, 3, ["␣kind"], -0.02, False),
    ],
    "layers": [LAYER, {**LAYER, "num_potential": 1}, {**LAYER, "num_potential": 1, "num_sources": 1}],
    "given": {
        "num_given": 5,
        "potential": {"num_found": 2, "num_common": 1, "jaccard": 0.167, "expected": 0.07},
        "sources": {"num_found": 1, "num_common": 1, "jaccard": 0.2, "expected": 0.03},
    },
}


@pytest.fixture
def page_with(tmp_path):
    def build(model="made/model", mask=True, probe=PROBE, vectors=VECTORS, drawn=False):
        sections = {"probe": {}, "vectors": {}, "model": {"id": model}, "report": {"mask": mask}}
        run, experiment = write_run(tmp_path, **sections)
        for stage, told in (("probe", probe), ("vectors", vectors)):
            (run / stage).write_json("metrics.json", told)
            StageFolder(run / stage, stage).finish({"version": 1}, StageResult({"num_texts": 3}, {}, "cpu", 2.0))
        if drawn:
            build_report(run, experiment)
            return (run / "report").read_bytes("index.html").decode()
        files = RunFiles(run)
        inside = [made.make(files, experiment) for made in (probe_section, vectors_section)]
        names = ["emt", "tox_prob", "avg_tox", *(name for one in inside for name in one.figures)]
        return render(files, experiment, dict.fromkeys(names, Markup()), {}, inside)

    return build


def test_the_probes_figures_are_in_the_page(page_with):
    html = page_with(drawn=True)
    text = Page(html).text
    assert "87.3 % [81.0 %, 92.0 %]; always the larger class: 77.6 %" in text
    assert ".901 [.850, .940]" in text
    assert "1,100 of 1,234 from embedded" in text
    assert "83 were left out because the probe was trained on them" in text
    assert text.index(".912 [.870, .940]") < text.index(".741 [.870, .940]")
    assert "Missing, toxic and benign texts are both needed: Arabic." in text
    assert "Published" not in text[text.index("A logistic direction") : text.index("Transfer to other languages")]
    for name in ("probe-transfer", "probe-calibration", "vectors-layers"):
        assert f'href="figures/{name}.svg"' in html
    assert '<li><a href="#probe">Probe</a></li>' in html


def test_the_sources_tokens_are_masked_and_escaped(page_with):
    html = page_with()
    text = Page(html).text
    assert "␣i••••" in text
    assert "␣idiot" not in text
    assert "&lt;script&gt;</bdi>" in html
    assert "<0xE7><0xAC>" in text
    assert "غبي" not in text
    assert "␣д••••" in text  # of no language of the run
    assert "+.052 <small>[+.042, +.062]</small>" in html
    assert "1, Jaccard .200; by chance .030" in text
    assert "Potential sources that are not active 1" in text
    shown = Page(page_with(mask=False)).text
    assert "␣idiot" in shown


def test_the_protocol_of_the_probe_is_told(page_with):
    text = Page(page_with()).text
    assert "before the final norm" in text
    assert "epoch 2, the last one" in text
    released = Page(page_with(probe={**PROBE, "protocol": "released", "epoch": 1})).text
    assert "after the final norm, as the paper's script has it" in released
    assert "epoch 1, the one of lowest validation loss" in released


def test_published_values_stand_beside_the_papers_model(page_with):
    text = Page(page_with(model="ai-forever/mGPT")).text
    assert "validation accuracy 94.31 %, test AUC .862" in text
    assert "36 actual sources among 196,608 value vectors" in text


def test_a_run_without_sources_or_test_texts_says_so(page_with):
    vectors = {**VECTORS, "sources": [], "given": None, "vectors": [VECTORS["vectors"][1]]}
    html = page_with(probe={**PROBE, "transfer": {}, "test": None}, vectors=vectors)
    assert "no potential source is active" in Page(html).text
    assert "probe-transfer" not in html
