"""The stage ``activations`` in an experiment, on a local Ray, with a tiny model and an adapter of it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from xgray.config import Activations, Experiment
from xgray.errors import InputError
from xgray.experiment.driver import run_experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.stages.activations import ActivationWorker
from xgray.generate.engine import Weights
from xgray.mechanism.activations import measure_activations
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.rows import Prompt
from xgray.runs.manifest import StageResult
from xgray.storage.folder import Folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
TEXTS = {
    "EN": ["The neighbour came home and said", "A kind", "Every morning the old man"],
    "DE": ["Der Nachbar kam nach Hause und sagte", "Guten"],
}
NEURONS = [(0, 3), (1, 127), (0, 64)]


@pytest.fixture
def experiment(tmp_path, tiny_model, tiny_adapter):
    """Return a function that makes the experiment with the given sections."""
    for code, texts in TEXTS.items():
        lines = [json.dumps({"Index": index, "Prompt": text}) for index, text in enumerate(texts)]
        (tmp_path / f"RTP_LX_{code}.json").write_text("\n".join(lines) + "\n")

    def make(**sections):
        return Experiment.model_validate(
            {
                "name": "tiny",
                "runs": str(tmp_path / "runs"),
                "model": {"id": tiny_model},
                "languages": ["de", "en"],
                "prompts": {"path": str(tmp_path)},
                "variants": [{"name": "tuned", "checkpoint": tiny_adapter[0]}],
                "evaluate": {"resamples": 200},
                **sections,
            }
        )

    return make


def folder_of(plan, model):
    return plan.stage("activations", model).folder.local


def test_base_and_tuned_models_are_measured_compared_and_resumed(experiment, tiny_model, tiny_adapter):
    plan = make_plan(experiment(activations={"neurons": NEURONS, "new_tokens": 6}))
    run_experiment(plan, ("activations",))
    expected = {}
    for model, weights in (("base", tiny_model), ("tuned", tiny_adapter[1])):
        loaded, tokenizer = load_causal_lm(weights, "float32"), load_tokenizer(weights)
        metrics = json.loads((folder_of(plan, model) / "metrics.json").read_text())
        for code, texts in TEXTS.items():
            values = measure_activations(loaded, tokenizer, texts, NEURONS, 6, 1)[0]
            expected[model, code] = values
            rows = pq.read_table(folder_of(plan, model) / "rows" / f"{code.lower()}.parquet").to_pylist()
            assert [row["prompt_id"] for row in rows] == [f"{code.lower()}/{index}" for index in range(len(texts))]
            np.testing.assert_allclose([row["activations"] for row in rows], values, atol=1e-5)
            language = metrics["languages"][code.lower()]
            assert language["num_prompts"] == len(texts)
            assert language["mean"]["value"] == pytest.approx(values.mean(), abs=1e-5)
            assert language["mean"]["low"] <= language["mean"]["value"] <= language["mean"]["high"]
            assert language["neurons"] == pytest.approx(values.mean(axis=0), abs=1e-5)
        means = [expected[model, code].mean() for code in TEXTS]
        assert metrics["average"]["mean"]["value"] == pytest.approx(np.mean(means), abs=1e-5)
        manifest = json.loads((folder_of(plan, model) / "manifest.json").read_text())
        assert manifest["counts"] == {"num_prompts": 5, "num_reused": 0, "num_tokens": 30}
    change = metrics["change"]["languages"]["en"]["difference"]
    assert change == pytest.approx((expected["tuned", "EN"] - expected["base", "EN"]).mean(), abs=1e-5)
    assert abs(change) > 1e-4
    assert not any(name.startswith("relative") for name in metrics["change"]["average"]), "a mean may pass through 0"

    whole = (folder_of(plan, "tuned") / "metrics.json").read_bytes()
    for name in ("manifest.json", "metrics.json", "rows/en.parquet"):
        (folder_of(plan, "tuned") / name).unlink()
    run_experiment(plan, ("activations",))
    assert (folder_of(plan, "tuned") / "metrics.json").read_bytes() == whole
    manifest = json.loads((folder_of(plan, "tuned") / "manifest.json").read_text())
    assert manifest["counts"] == {"num_prompts": 5, "num_reused": 2, "num_tokens": 30}


def test_the_sources_that_the_stage_vectors_found_are_measured(experiment):
    sections = {"activations": {"new_tokens": 2, "limit": 1}, "probe": {}, "vectors": {}}
    plan = make_plan(experiment(**sections, variants=[], languages=["en"]))
    with pytest.raises(InputError, match="stage vectors is not finished"):
        run_experiment(plan, ("activations",))
    vectors = plan.stage("vectors")
    vectors.folder.write_json("metrics.json", {"sources": [[1, 7], [0, 2]]})
    vectors.finish(StageResult())
    run_experiment(plan, ("activations",))
    metrics = json.loads((folder_of(plan, "base") / "metrics.json").read_text())
    assert metrics["neurons"] == [[1, 7], [0, 2]]
    assert metrics["languages"]["en"]["num_prompts"] == 1
    assert metrics["languages"]["en"]["mean"]["reason"] == "a single prompt has no interval"


def test_without_sources_the_stage_is_finished_and_says_why(experiment):
    plan = make_plan(experiment(activations={}, probe={}, vectors={}))
    vectors = plan.stage("vectors")
    vectors.folder.write_json("metrics.json", {"sources": []})
    vectors.finish(StageResult())
    run_experiment(plan, ("activations",))
    for model in ("base", "tuned"):
        metrics = json.loads((folder_of(plan, model) / "metrics.json").read_text())
        assert metrics["neurons"] == []
        assert "vectors found no actual sources" in metrics["reason"]
        assert json.loads((folder_of(plan, model) / "manifest.json").read_text())["counts"] == {"num_neurons": 0}


def test_prompts_longer_than_the_context_are_named(experiment):
    plan = make_plan(experiment(activations={"neurons": NEURONS, "new_tokens": 124}))
    with pytest.raises(InputError, match=r"longer than 4 tokens .*activations\.new_tokens\): de/0 \(\d+\), "):
        run_experiment(plan, ("activations",))


def test_a_neuron_outside_the_model_is_refused(tiny_model, tmp_path):
    section = Activations(neurons=[(0, 3), (2, 0)])
    with pytest.raises(InputError, match=r"activations\.neurons: no neuron \[2, 0\]: the model has 2 layers of 128"):
        ActivationWorker(Weights(tiny_model, None, "float32"), section.neurons, section, Folder(str(tmp_path)))


def test_an_activation_that_is_not_a_number_is_an_error_with_its_language_layer_and_neuron(tiny_model, tmp_path):
    worker = ActivationWorker(
        Weights(tiny_model, None, "float32"), NEURONS, Activations(neurons=NEURONS), Folder(str(tmp_path))
    )
    worker.model.model.layers[1].mlp.up_proj.weight.data[127] = float("nan")
    with pytest.raises(InputError, match=r"activations: en: the activation of neuron \[1, 127\]"):
        worker.work(("en", [Prompt("en/0", "en", "A kind word")]))
    assert not list(tmp_path.iterdir())
