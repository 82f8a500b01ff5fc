"""Results are not shown when a stage that they were made from has been computed again since."""

import pytest

from tests.report.example_run import CHANGES, write_run
from tests.report.page import page_without_figures
from tests.report.test_retrieve import write_retrieval
from xgray.report.files import RunFiles
from xgray.runs.manifest import StageFolder, StageResult
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder


@pytest.fixture
def files(tmp_path):
    return RunFiles(Folder(str(tmp_path)))


def finish(run, label, version=1, **inputs):
    """Finish a stage with ``inputs``, and return its fingerprint."""
    stage, _, model = label.partition("/")
    payload = {"version": version, "inputs": inputs}
    StageFolder(run / label, stage, model or None).finish(payload, StageResult())
    return fingerprint(payload)


def finish_chain(run):
    """Finish the probe, the vectors made from it, and the activations made from these."""
    probe = finish(run, "probe", model="m")
    vectors = finish(run, "vectors", probe=probe, model="m")
    finish(run, "activations/base", vectors=vectors, model="m", tuned=None)
    return probe


def test_results_of_one_configuration_are_current(files):
    finish_chain(files.run)
    assert files.stale_reason("probe", "vectors", "activations/base", "activations/dpo") is None


def test_results_of_a_recomputed_input_are_stale(files):
    probe = finish_chain(files.run)
    finish(files.run, "vectors", 2, probe=probe)
    reason = files.stale_reason("activations/base")
    assert reason.startswith("activations/base ")
    assert "the stage vectors " in reason
    assert f"xgray activations {files.run} --force" in reason
    assert files.stale_reason("vectors") is None


def test_results_of_stale_results_are_stale(files):
    finish_chain(files.run)
    finish(files.run, "probe", 2, model="m")
    for label in ("vectors", "activations/base"):
        reason = files.stale_reason(label)
        assert "the stage probe " in reason
        assert f"xgray vectors {files.run} --force" in reason


def test_an_input_that_is_being_recomputed_counts_as_recomputed(files):
    finish_chain(files.run)
    StageFolder(files.run / "vectors", "vectors").begin({"version": 3}, force=True)
    assert "the stage vectors " in files.stale_reason("activations/base")


def test_results_of_a_retrained_variant_are_stale(files):
    trained = finish(files.run, "train/dpo")
    finish(files.run, "activations/dpo", model="m", tuned=trained)
    finish(files.run, "activations/given", model="m", tuned="a checkpoint")
    assert files.stale_reason("activations/dpo", "activations/given") is None
    finish(files.run, "train/dpo", 2)
    files = RunFiles(files.run)
    assert "the stage train/dpo " in files.stale_reason("activations/dpo")
    assert files.stale_reason("activations/given") is None


def test_results_of_another_base_model_are_stale(files):
    finish(files.run, "generate/base", model="m", tuned=None)
    finish(files.run, "activations/base", model="m", tuned=None)
    assert files.stale_reason("activations/base") is None
    finish(files.run, "generate/base", model="another", tuned=None)
    assert "another base model" in RunFiles(files.run).stale_reason("activations/base")


def test_retrieval_is_shown_without_a_stale_transfer(tmp_path):
    further = {language: (0.5, 0.3 + 0.02 * index, True) for index, language in enumerate(("hi", "ja", "zh-hans"))}
    run, experiment = write_run(tmp_path, changes=CHANGES | further)
    write_retrieval(run, RunFiles(run))
    finish(run, "transfer", retrieve=finish(run, "retrieve"))
    current = page_without_figures(run, experiment).section("retrieve")
    assert current.rows_of("Accuracy", "repaired")
    finish(run, "retrieve", 2)
    stale = page_without_figures(run, experiment).section("retrieve")
    (reason,) = stale.texts("p", "none")
    assert reason.startswith("transfer ")
    assert "the stage retrieve " in reason
    assert stale.rows_of("Hindi")
    assert not stale.rows_of("Accuracy", "repaired")
    assert "figures/retrieval_accuracy.svg" in [link.attributes["href"] for link in stale.all("a")]
    assert "figures/transfer_accuracy.svg" not in [link.attributes["href"] for link in stale.all("a")]
