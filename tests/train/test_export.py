"""Exported weights give the log-probabilities of the trained model."""

import pytest
import torch
from peft import PeftModel

from tests.train.tiny import PAIRS, build_tiny_trainer
from xgray.config import Model, Train
from xgray.errors import InputError
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.storage.folder import Folder
from xgray.train.export import export, merge_into

pytestmark = pytest.mark.slow


@pytest.fixture
def train(tiny_model, tmp_path):
    def run(**fields):
        section = Train(max_steps=4, eval_steps=4, warmup_steps=1, learning_rate=1e-2, **fields)
        trainer = build_tiny_trainer(tiny_model, section, tmp_path / "run")
        trainer.train()
        export(tiny_model, None, tmp_path / "run" / "work" / "checkpoint-4", tmp_path / "out")
        return trainer.model.eval(), tmp_path / "out"

    return run


def log_probs(model, tiny_model):
    ids = load_tokenizer(tiny_model)([pair.prompt + pair.chosen for pair in PAIRS], padding=True, return_tensors="pt")
    with torch.no_grad():
        return torch.log_softmax(model(**ids).logits, -1)


@pytest.mark.parametrize("lora_targets", ["corrected", "released"])
def test_merged_adapter_and_trained_model_agree(train, tiny_model, lora_targets):
    trained, out = train(method="lora", lora_targets=lora_targets)
    assert [folder.name for folder in out.iterdir()] == ["adapter"], "merged only where whole weights are needed"
    merged = merge_into(Model(id=tiny_model), str(out / "adapter"), Folder(str(out / "merged")))
    expected = log_probs(trained, tiny_model)
    assert (expected - log_probs(load_causal_lm(tiny_model, "float32"), tiny_model)).abs().max() > 0.1
    torch.testing.assert_close(log_probs(load_causal_lm(merged, "float32"), tiny_model), expected)
    adapted = PeftModel.from_pretrained(load_causal_lm(tiny_model, "float32"), str(out / "adapter")).eval()
    torch.testing.assert_close(log_probs(adapted, tiny_model), expected)
    assert {path.name for path in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_full_training_is_exported_as_a_whole_model_with_its_tokenizer(train, tiny_model):
    trained, out = train(method="full")
    expected = log_probs(trained, tiny_model)
    torch.testing.assert_close(log_probs(load_causal_lm(str(out / "merged"), "float32"), tiny_model), expected)
    assert load_tokenizer(str(out / "merged"))("The baker")["input_ids"]
    assert [folder.name for folder in out.iterdir()] == ["merged"]


def test_failed_export_leaves_nothing(tiny_model, tmp_path):
    broken = tmp_path / "checkpoint"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    (broken / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        export(tiny_model, None, broken, tmp_path / "out")
    assert not (tmp_path / "out" / "adapter").exists()
    assert not list((tmp_path / "out").glob(".tmp-*"))


def test_export_leaves_existing_folders_as_they_are(train, tiny_model, tmp_path):
    _, out = train(method="full")
    before = (out / "merged" / "model.safetensors").stat().st_mtime_ns
    export(tiny_model, None, tmp_path / "run" / "work" / "checkpoint-4", out)
    assert (out / "merged" / "model.safetensors").stat().st_mtime_ns == before
