"""The stages ``probe`` and ``vectors`` on a local Ray, with a tiny random model read from disk."""

import logging

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from xgray.config import Experiment, Probe
from xgray.data.labelled import read_comments, read_labelled
from xgray.data.prompts import read_prompts
from xgray.errors import StageError
from xgray.experiment.driver import run_stage
from xgray.experiment.plan import make_plan
from xgray.experiment.stages.probe import UNIT, compute_features
from xgray.mechanism.activations import measure_activations
from xgray.mechanism.neurons import down_projections, value_vectors
from xgray.mechanism.probe import text_features, train_probe
from xgray.mechanism.vectors import potential_sources
from xgray.models.load import load_model
from xgray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
PROBE = {"epochs": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, tiny_model):
    return Experiment.model_validate(
        {
            "name": "made",
            "runs": str(tmp_path_factory.mktemp("runs")),
            "model": {"id": tiny_model},
            "variants": [],
            "probe": PROBE,
            "vectors": {"top_k": 20, "new_tokens": 4, "num_tokens": 5, "limit": 7, "given": [[0, 1], [1, 100]]},
        }
    )


def run(experiment, *stages, force=False):
    """Run the stages, and return the run's folder and the counts of those that ran."""
    plan = make_plan(experiment)
    counts = {}
    for stage in plan.stages:
        if stage.name in stages and stage.begin(force):
            result = run_stage(plan, stage, lambda *report: None)
            stage.finish(result)
            counts[stage.name] = result.counts
    return plan.run.local, counts


@pytest.fixture(scope="module")
def finished(experiment):
    return run(experiment, "probe", "vectors")


def test_the_probe_is_that_of_the_plain_functions(experiment, finished):
    folder, counts = finished
    model, tokenizer = load_model(experiment.model)
    comments = read_comments("embedded", 0.1, 0)
    fit = [comment for comment in comments if comment.split == "fit"]
    features, _ = text_features(model, tokenizer, [comment.text for comment in fit], 1024, 8)
    labelled = features, np.array([comment.toxic for comment in fit])
    trained = train_probe(labelled, labelled, Probe(**PROBE), 0)
    assert load_file(folder / "probe" / "probe.safetensors")["w"] == pytest.approx(trained.w, abs=1e-4)
    metrics = Folder(str(folder / "probe")).read_json("metrics.json")
    assert metrics["train_loss"] == pytest.approx(trained.losses, abs=1e-4)
    assert (metrics["epoch"], len(metrics["validation_loss"])) == (3, 3)
    known = {comment.text for comment in fit}
    test = [row for row in read_labelled("embedded") if row.text not in known]
    assert {code: counts["num_toxic"] + counts["num_benign"] for code, counts in metrics["transfer"].items()} == {
        code: sum(row.language == code for row in test) for code in {row.language for row in test}
    }
    assert metrics["num_test_left_out"] == len(fit)
    assert counts["probe"]["num_texts"] == len({row.text for row in (*comments, *test)})


def test_units_and_workers_do_not_change_the_features(experiment, finished, tmp_path):
    model, tokenizer = load_model(experiment.model)
    texts = [row.text for row in read_labelled("embedded")][: UNIT + 40]
    section = Probe.model_validate({**PROBE, "execution": {"num_workers": 2, "batch_size": 8}})
    folder = Folder(str(tmp_path / "features"))
    found = compute_features(experiment.model, section, texts, folder)
    assert len(folder.names(".safetensors")) == 2
    alone, _ = text_features(model, tokenizer, texts, 1024, 64)
    assert found.values[[found.rows[text] for text in texts]] == pytest.approx(alone, abs=1e-4)
    # What is on disk is not computed again, and what is missing is.
    first, second = (folder.local / name for name in folder.names(".safetensors"))
    kept, content = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    again = compute_features(experiment.model, section, texts, folder)
    assert (again.num_reused, first.stat().st_mtime_ns) == (UNIT, kept)
    assert second.read_bytes() == content
    second.write_bytes(content[:-1])
    with pytest.raises(StageError, match=r"000001\.safetensors is damaged .*; delete it, and the same command"):
        compute_features(experiment.model, section, texts, folder)


def test_the_sources_are_the_active_ones_of_the_vectors_found(experiment, finished):
    folder, counts = finished
    metrics = Folder(str(folder / "vectors")).read_json("metrics.json")
    model, tokenizer = load_model(experiment.model)
    w = load_file(folder / "probe" / "probe.safetensors")["w"]
    expected, _ = potential_sources(model, tokenizer, w, 20, 5)
    assert [(vector["layer"], vector["index"], vector["tokens"]) for vector in metrics["vectors"]] == [
        (vector.layer, vector.index, vector.tokens) for vector in expected
    ]
    texts = [prompt.text for prompt in read_prompts(experiment.prompts.at_most(7), ["en"])]
    means = measure_activations(model, tokenizer, texts, [vector.neuron for vector in expected], 4, 3)[0].mean(axis=0)
    assert [vector["mean_activation"]["value"] for vector in metrics["vectors"]] == pytest.approx(means, abs=1e-5)
    sources = [list(vector.neuron) for vector, mean in zip(expected, means, strict=True) if mean > 0]
    assert 0 < len(sources) < 20
    assert metrics["sources"] == sources
    assert sum(layer["num_sources"] for layer in metrics["layers"]) == len(sources)
    assert counts["vectors"] == {
        "num_prompts": 7, "num_reused": 0, "num_potential": 20, "num_sources": len(sources)
    }  # fmt: skip
    assert metrics["given"]["sources"]["expected"] == pytest.approx(2 * len(sources) / 256)


def test_no_active_source_is_no_failure(experiment, finished, caplog):
    """The probe of a file points along a value vector whose neuron is inactive after the prompts."""
    folder, _ = finished
    model, tokenizer = load_model(experiment.model)
    texts = [prompt.text for prompt in read_prompts(experiment.prompts.at_most(7), ["en"])]
    means = measure_activations(model, tokenizer, texts, [(1, index) for index in range(128)], 4, 7)[0].mean(axis=0)
    inactive = int(means.argmin())
    vector = value_vectors(down_projections(model)[1])[inactive].detach().numpy().copy()
    head = torch.nn.Linear(len(vector), 1, bias=False)
    head.weight.data[0] = torch.from_numpy(vector)
    torch.save(head, folder / "english-probe.pt")
    update = {"top_k": 1, "given": [], "probe": str(folder / "english-probe.pt")}
    section = experiment.vectors.model_copy(update=update)
    with caplog.at_level(logging.WARNING):
        _, counts = run(experiment.model_copy(update={"vectors": section}), "vectors", force=True)
    metrics = Folder(str(folder / "vectors")).read_json("metrics.json")
    assert (metrics["vectors"][0]["layer"], metrics["vectors"][0]["index"]) == (1, inactive)
    assert (metrics["sources"], metrics["given"], counts["vectors"]["num_sources"]) == ([], None, 0)
    assert "None of the 1 potential sources is active" in caplog.text
