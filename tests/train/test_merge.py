"""Merging row by row gives what PEFT's merge of the loaded model gives, on every architecture and kind of layer."""

import json
import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
)
from transformers.pytorch_utils import Conv1D

from xgray.config import Model
from xgray.models.cache import save
from xgray.models.load import load_tokenizer
from xgray.storage.folder import Folder
from xgray.train import merge
from xgray.train.export import merge_adapter

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": 400}
SHAPE = IDS | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "gpt2": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bloom": BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4),
    "gemma3": Gemma3TextConfig(**SHAPE, num_key_value_heads=2, head_dim=8),
    "cohere": CohereConfig(**SHAPE, num_key_value_heads=2),
    "phi3": Phi3Config(**SHAPE),
}
"""Separate and fused projections, Conv1D, tied embeddings and a head of its own."""
EMBEDDINGS = ("embed_tokens", "wte", "wpe", "word_embeddings", "lm_head")


@pytest.fixture(params=CONFIGS)
def base(request, tokenizer, tmp_path):
    """The folder of a tiny model in two files, in bfloat16."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).bfloat16()
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make_adapter(base: Path, folder: Path, **options) -> Path:
    """Write an adapter of random weights for all linear layers of the blocks, by default."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"target_modules": "all-linear"} | options
    if options["target_modules"] == "everything":
        kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
        options["target_modules"] = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    config = LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # biases and copies of layers too
            parameter.data += 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(folder)
    return folder


def merge_in_memory(base: Path, adapter: Path, target: Path) -> Path:
    """Merge the model that is loaded whole, by PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, adapter)
    head = model.get_output_embeddings()
    if hasattr(head, "get_base_layer") and model.config.tie_word_embeddings:
        head.get_base_layer().weight = torch.nn.Parameter(head.get_base_layer().weight.detach().clone())
        model.config.tie_word_embeddings = False
    save(adapted.merge_and_unload().bfloat16(), target)
    save(load_tokenizer(str(base)), target)
    return target


def assert_equal_models(ours: Path, theirs: Path) -> None:
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}
    for name in ("config.json", "generation_config.json"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())
    mine, other = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert mine.keys() == other.keys()
    for name, weight in other.items():
        assert mine[name].dtype == weight.dtype == torch.bfloat16
        torch.testing.assert_close(mine[name], weight, rtol=2**-7, atol=0)
        assert (mine[name] != weight).float().mean() < 0.001, "only a sum that lies between two bfloat16 numbers"


@pytest.mark.parametrize("target_modules", ["all-linear", "everything"])
def test_rows_and_whole_models_are_merged_to_the_same(base, tmp_path, monkeypatch, caplog, target_modules):
    monkeypatch.setattr(merge, "BLOCK_BYTES", 1000)  # several blocks of rows for each weight
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=target_modules)
    with caplog.at_level(logging.INFO):
        merged = merge_adapter(Model(id=str(base)), str(adapter), Folder(str(tmp_path / "merged")))
    assert "in memory" not in caplog.text
    assert_equal_models(Path(merged), merge_in_memory(base, adapter, tmp_path / "expected"))
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    after, info = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    ids = torch.arange(8)[None]
    assert (before(ids).logits - after(ids).logits).abs().max() > 0.01


@pytest.mark.parametrize(
    ("base", "options", "is_in_memory"),
    [
        ("llama", {"use_rslora": True}, False),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 20}}, False),
        ("llama", {"use_dora": True}, True),
        ("llama", {"modules_to_save": ["lm_head"]}, True),
        ("gpt2", {"bias": "lora_only"}, False),
    ],
    indirect=["base"],
)
def test_variants_of_lora_are_merged_exactly_or_in_memory(base, tmp_path, caplog, options, is_in_memory):
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    with caplog.at_level(logging.INFO):
        merged = merge_adapter(Model(id=str(base)), str(adapter), Folder(str(tmp_path / "merged")))
    assert ("in memory" in caplog.text) is is_in_memory
    assert_equal_models(Path(merged), merge_in_memory(base, adapter, tmp_path / "expected"))
