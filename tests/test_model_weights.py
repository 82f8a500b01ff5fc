"""Which weights stand for a model: the base model's, a training's with or without its adapter, or a checkpoint's."""

from pathlib import Path

import pytest

from xgray.config import Experiment
from xgray.errors import InputError
from xgray.generate.engine import Weights
from xgray.model_weights import model_weights
from xgray.plan import make_plan


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
    asked = []
    assert model_weights(plan, "adapter", lambda adapter: not asked.append(adapter)) == (base, tiny_adapter[0])
    assert asked == [tiny_adapter[0]]
    merged, adapter = model_weights(plan, "adapter")
    assert adapter is None
    assert (Path(merged.path) / "config.json").is_file()
    assert merged.path != tiny_model


def test_a_trained_model_has_its_adapter_or_its_merged_weights(plan, tiny_model):
    with pytest.raises(InputError, match="train/trained is not finished"):
        plan.require_model("trained")
    plan.require_model("base")
    folder = plan.train["trained"].place.folder
    merged = Weights((folder / "merged").uri, None, "float32")
    assert model_weights(plan, "trained", lambda adapter: True) == (merged, None)
    (folder / "adapter").write_bytes("adapter_config.json", b"{}")
    assert model_weights(plan, "trained") == (merged, None)
    taken = model_weights(plan, "trained", lambda adapter: True)
    assert taken == (Weights(tiny_model, None, "float32"), (folder / "adapter").uri)
