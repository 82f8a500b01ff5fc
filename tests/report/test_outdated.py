"""What was made from a stage that has been made anew since is not shown beside it."""

import pytest

from tests.report.example_run import CHANGES, write_run
from tests.report.test_report import Page
from tests.report.test_retrieve import write_retrieval
from xgray.report.build import build_report
from xgray.report.files import RunFiles
from xgray.runs.manifest import StageFolder, StageResult
from xgray.storage.fingerprint import fingerprint
from xgray.storage.folder import Folder


@pytest.fixture
def files(tmp_path):
    return RunFiles(Folder(str(tmp_path)))


def finish(run, label, version=1, **inputs):
    """Finish a stage made of ``inputs``, and give its fingerprint."""
    stage, _, model = label.partition("/")
    payload = {"version": version, "inputs": inputs}
    StageFolder(run / label, stage, model or None).finish(payload, StageResult())
    return fingerprint(payload)


def chain(run, probe=1, vectors=1):
    own = finish(run, "vectors", vectors, probe=finish(run, "probe", probe, model="m"), model="m")
    finish(run, "activations/base", vectors=own, model="m", tuned=None)


def test_stages_of_one_configuration_are_of_one_piece(files):
    chain(files.run)
    assert files.outdated("probe", "vectors", "activations/base", "activations/dpo") is None


def test_what_an_anew_made_stage_went_into_is_outdated(files):
    chain(files.run)
    finish(files.run, "vectors", 2, probe=fingerprint({"version": 1, "inputs": {"model": "m"}}))
    reason = files.outdated("activations/base")
    assert "activations/base is not shown: the stage vectors has been made anew since" in reason
    assert f"xgray activations {files.run} --force" in reason
    assert files.outdated("vectors") is None


def test_so_is_what_was_made_from_it_in_turn(files):
    chain(files.run)
    finish(files.run, "probe", 2, model="m")
    assert "vectors is not shown: the stage probe has" in files.outdated("vectors")
    assert "the stage probe has been made anew" in files.outdated("activations/base")


def test_a_stage_that_is_being_made_anew_counts_as_well(files):
    chain(files.run)
    StageFolder(files.run / "vectors", "vectors").begin({"version": 3}, force=True)
    assert "the stage vectors has been made anew" in files.outdated("activations/base")


def test_tuned_models_and_the_base_model_are_looked_at(files):
    trained = finish(files.run, "train/dpo")
    finish(files.run, "generate/base", model="m", tuned=None)
    finish(files.run, "activations/dpo", model="m", tuned=trained)
    finish(files.run, "activations/given", model="m", tuned="a checkpoint")
    assert files.outdated("activations/dpo", "activations/given") is None
    finish(files.run, "train/dpo", 2)
    again = RunFiles(files.run)
    assert "the stage train/dpo has been made anew" in again.outdated("activations/dpo")
    finish(files.run, "generate/base", model="another", tuned=None)
    assert "completions are of another base model" in RunFiles(files.run).outdated("activations/given")


def test_retrieval_is_shown_without_the_transfer_of_another_one(tmp_path):
    changes = CHANGES | {code: (0.5, 0.3 + 0.02 * at, True) for at, code in enumerate(("hi", "ja", "zh-hans"))}
    run, experiment = write_run(tmp_path, changes=changes)
    write_retrieval(run, RunFiles(run))
    first = finish(run, "retrieve")
    finish(run, "transfer", retrieve=first)
    assert "transfer_accuracy" in page(run, experiment)
    finish(run, "retrieve", 2)
    html = page(run, experiment)
    assert "transfer is not shown: the stage retrieve has been made anew since" in Page(html).text
    assert "retrieval_accuracy" in html
    assert "transfer_accuracy" not in html
    assert "Correlation with the relative fall" not in html


def page(run, experiment):
    build_report(run, experiment)
    return (run / "report").read_bytes("index.html").decode()
