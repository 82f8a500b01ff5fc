"""The report's sections about the probe and the value vectors, from files as their stages leave them."""

import re

import pytest

from tests.report.example_run import write_run
from tests.report.page import page_without_figures, parse, report_html
from xgray.runs.manifest import StageFolder, StageResult

ARABIC_REASON = "toxic and benign texts are both needed"
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
        "ar": {**MEASURED, "auc": None, "low": None, "high": None, "reason": ARABIC_REASON},
    },
}
LAYER = {"num_neurons": 48, "mean": 0.0, "max": 0.4, "num_potential": 0, "num_sources": 0}


def vector(layer, index, tokens, mean, source):
    return {
        "layer": layer,
        "index": index,
        "cosine": 0.31,
        "tokens": tokens,
        "mean_activation": {"value": mean, "low": mean - 0.01, "high": mean + 0.01},
        "source": source,
    }


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
def write(tmp_path):
    """Write a run with a probe and vectors, and return it and its experiment."""

    def write(model="made/model", mask=True, probe=PROBE, vectors=VECTORS):
        sections = {"probe": {}, "vectors": {}, "model": {"id": model}, "report": {"mask": mask}}
        run, experiment = write_run(tmp_path, **sections)
        for stage, metrics in (("probe", probe), ("vectors", vectors)):
            (run / stage).write_json("metrics.json", metrics)
            StageFolder(run / stage, stage).finish({"version": 1}, StageResult({"num_texts": 3}, {}, "cpu", 2.0))
        return run, experiment

    return write


@pytest.fixture
def page_with(write):
    """Write a run as above and return its page, without figures."""
    return lambda **options: page_without_figures(*write(**options))


def test_the_probes_values_are_shown(page_with):
    section = page_with().section("probe")
    assert re.search(r"87\.3 % \[81\.0 %, 92\.0 %\].* 77\.6 %", section.facts["Validation accuracy"])
    assert section.facts["Validation AUC"] == ".901 [.850, .940]"
    assert section.facts["Training texts"] == "1,100 of 1,234 from embedded"
    assert any("83 were left out" in note for note in section.texts("p", "note"))
    assert [row[:2] for row in section.table_rows[1:]] == [
        ["English", ".912 [.870, .940]"],
        ["German", ".741 [.870, .940]"],
        ["Arabic", "–"],
    ]
    assert any(ARABIC_REASON in note and "Arabic" in note for note in section.texts("p", "note"))
    assert "Published" not in section.text


def test_figures_and_sections_are_in_the_page(write):
    run, experiment = write()
    page = parse(report_html(run, experiment))
    links = [link.attributes["href"] for link in page.all("a")]
    assert {"#probe", "#vectors"} <= set(links)
    for name in ("probe-transfer", "probe-calibration", "vectors-layers"):
        assert f"figures/{name}.svg" in links
        assert (run / "report" / "figures").exists(f"{name}.svg")


def test_the_sources_tokens_are_masked_and_escaped(page_with):
    section = page_with().section("vectors")
    (row,) = section.rows_of("2, 7")
    assert row[1:3] == [".310", "+.052 [+.042, +.062]"]
    tokens = row[3].split()
    assert tokens[:3] == ["␣i••••", "<script>", "I••••"]
    assert "غبي" not in section.text
    assert "␣д••••" in tokens  # of a language that the run does not have
    assert "<0xE7><0xAC>" in tokens
    assert not section.all("script")


def test_tokens_are_shown_where_masking_is_off(page_with):
    assert "␣idiot" in page_with(mask=False).section("vectors").text


def test_overlap_with_the_given_neurons_and_other_potential_sources_are_shown(page_with):
    section = page_with().section("vectors")
    assert "1, Jaccard .200; by chance .030" in section.facts.values()
    assert "1, Jaccard .167; by chance .070" in section.facts.values()
    (others,) = section.all("details")
    assert [row[0] for row in others.table_rows[1:]] == ["1, 3"]


def test_the_protocol_of_the_probe_is_stated(page_with):
    corrected = page_with().section("probe")
    assert "before the final norm" in corrected.text
    assert corrected.facts["Kept epoch"].startswith("epoch 2, ")
    released = page_with(probe={**PROBE, "protocol": "released", "epoch": 1}).section("probe")
    assert "after the final norm" in released.text
    assert released.facts["Kept epoch"].startswith("epoch 1, ")
    assert "lowest validation loss" in released.facts["Kept epoch"]


def test_published_values_stand_beside_those_of_the_papers_model(page_with):
    page = page_with(model="ai-forever/mGPT")
    assert any("94.31 %" in note and ".862" in note for note in page.section("probe").texts("p", "note"))
    assert any("36 actual" in note and "196,608" in note for note in page.section("vectors").texts("p", "note"))


def test_a_run_without_sources_or_test_texts_says_so(page_with):
    vectors = {**VECTORS, "sources": [], "given": None, "vectors": [VECTORS["vectors"][1]]}
    page = page_with(probe={**PROBE, "transfer": {}, "test": None}, vectors=vectors)
    assert page.section("vectors").all("p", "none")
    assert not page.section("probe").table_rows
    assert "figures/probe-transfer.svg" not in [link.attributes["href"] for link in page.all("a")]
