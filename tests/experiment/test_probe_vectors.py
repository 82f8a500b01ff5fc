"""The stages ``probe`` and ``vectors`` on a real local Ray, with a tiny random model read from disk."""

import logging

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file, save_file

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

pytestmark = pytest.mark.slow
PROBE = {"epochs": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    yield
    ray.shutdown()


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
    """Run the stages and give their folders and counts."""
    plan = make_plan(experiment)
    found = {}
    for one in plan.stages:
        if one.name in stages and one.begin(force):
            result = run_stage(plan, one, lambda *told: None)
            one.finish(result)
            found[one.name] = result.counts
    return plan.run.local, found


@pytest.fixture(scope="module")
def done(experiment):
    return run(experiment, "probe", "vectors")


def test_the_probe_is_that_of_the_plain_functions(experiment, done):
    folder, counts = done
    model, tokenizer = load_model(experiment.model)
    comments = read_comments("embedded", 0.1, 0)
    fit = [one for one in comments if one.split == "fit"]
    features, _ = text_features(model, tokenizer, [one.text for one in fit], 1024, 8)
    own = features, np.array([one.toxic for one in fit])
    trained = train_probe(own, own, Probe(**PROBE), 0)
    assert load_file(folder / "probe" / "probe.safetensors")["w"] == pytest.approx(trained.w, abs=1e-4)
    told = Folder(str(folder / "probe")).read_json("metrics.json")
    assert told["train_loss"] == pytest.approx(trained.losses, abs=1e-4)
    assert (told["epoch"], len(told["validation_loss"])) == (3, 3)
    known = {one.text for one in fit}
    test = [one for one in read_labelled("embedded") if one.text not in known]
    assert {code: one["num_toxic"] + one["num_benign"] for code, one in told["transfer"].items()} == {
        code: sum(one.language == code for one in test) for code in {one.language for one in test}
    }
    assert told["num_test_left_out"] == len(fit)
    assert counts["probe"]["num_texts"] == len({one.text for one in (*comments, *test)})


def test_units_and_workers_do_not_change_the_features(experiment, done, tmp_path):
    model, tokenizer = load_model(experiment.model)
    texts = [one.text for one in read_labelled("embedded")][: UNIT + 40]
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


def test_the_sources_are_the_active_ones_of_the_vectors_found(experiment, done):
    folder, counts = done
    told = Folder(str(folder / "vectors")).read_json("metrics.json")
    model, tokenizer = load_model(experiment.model)
    w = load_file(folder / "probe" / "probe.safetensors")["w"]
    expected, _ = potential_sources(model, tokenizer, w, 20, 5)
    assert [(one["layer"], one["index"], one["tokens"]) for one in told["vectors"]] == [
        (one.layer, one.index, one.tokens) for one in expected
    ]
    texts = [one.text for one in read_prompts(experiment.prompts.at_most(7), ["en"])]
    means = measure_activations(model, tokenizer, texts, [one.neuron for one in expected], 4, 3)[0].mean(axis=0)
    assert [one["mean_activation"]["value"] for one in told["vectors"]] == pytest.approx(means, abs=1e-5)
    sources = [list(one.neuron) for one, mean in zip(expected, means, strict=True) if mean > 0]
    assert 0 < len(sources) < 20
    assert told["sources"] == sources
    assert sum(one["num_sources"] for one in told["layers"]) == len(sources)
    assert counts["vectors"] == {
        "num_prompts": 7, "num_reused": 0, "num_potential": 20, "num_sources": len(sources)
    }  # fmt: skip
    assert told["given"]["sources"]["expected"] == pytest.approx(2 * len(sources) / 256)


def test_no_active_source_is_no_failure(experiment, done, caplog):
    """The probe is made to point along a value vector whose neuron is inactive after the prompts."""
    folder, _ = done
    model, tokenizer = load_model(experiment.model)
    texts = [one.text for one in read_prompts(experiment.prompts.at_most(7), ["en"])]
    means = measure_activations(model, tokenizer, texts, [(1, at) for at in range(128)], 4, 7)[0].mean(axis=0)
    inactive = int(means.argmin())
    vector = value_vectors(down_projections(model)[1])[inactive].detach().numpy().copy()
    save_file({"w": vector}, folder / "probe" / "probe.safetensors")
    section = experiment.vectors.model_copy(update={"top_k": 1, "given": []})
    with caplog.at_level(logging.WARNING):
        _, counts = run(experiment.model_copy(update={"vectors": section}), "vectors", force=True)
    told = Folder(str(folder / "vectors")).read_json("metrics.json")
    assert (told["vectors"][0]["layer"], told["vectors"][0]["index"]) == (1, inactive)
    assert (told["sources"], told["given"], counts["vectors"]["num_sources"]) == ([], None, 0)
    assert "no potential source is active" in caplog.text
