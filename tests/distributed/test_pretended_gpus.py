"""What a run does where there is a GPU, here one that Ray pretends to have: adapters in vLLM, and who gets the GPU."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.distributed.pipeline_driver import run
from tests.score.tiny_classifier import tiny_classifier
from xgray.config import Experiment
from xgray.experiment.plan import make_plan
from xgray.experiment.stages.sample import pipeline_models
from xgray.models.source import is_adapter

pytestmark = pytest.mark.slow

TINY = {"vocab_size": 50_000, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@pytest.fixture(scope="module")
def gpu():
    import ray

    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def with_adapter(model, target, folder, tokenizer):
    """Save the model and an adapter of its attention; return their folders."""
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "model")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=[target], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return str(folder / "model"), str(folder / "adapter")


def dpo_model(model, adapter, runs):
    """Return the variant as the pipeline would load it."""
    values = {
        "name": "tiny",
        "runs": str(runs),
        "model": {"id": model},
        "variants": [{"name": "dpo", "checkpoint": adapter}],
        "generate": {"execution": {"engine": "vllm"}},
    }
    return pipeline_models(make_plan(Experiment.model_validate(values)), "vllm", ["base", "dpo"])[1]


def test_vllm_gets_the_adapters_that_it_can_apply_and_merged_weights_otherwise(
    gpu, tiny_model, tiny_adapter, tmp_path, monkeypatch
):
    monkeypatch.setenv("XGRAY_CACHE", str(tmp_path / "cache"))
    llama = dpo_model(tiny_model, tiny_adapter[0], tmp_path / "llama")
    assert (llama.adapter, llama.weights.path) == (tiny_adapter[0], tiny_model)
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=1, n_head=2, **TINY))
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, **TINY))
    for name, network, target in (("bloom", bloom, "query_key_value"), ("gpt2", gpt2, "c_attn")):
        model, adapter = with_adapter(network, target, tmp_path / name, tiny_model)
        served = dpo_model(model, adapter, tmp_path / name)
        assert served.adapter is None
        assert served.weights.path != model
        assert not is_adapter(served.weights.path)
        assert (Path(served.weights.path) / "config.json").is_file()


def test_a_classifier_scores_after_the_engine_has_left_the_only_gpu(gpu, tiny_model, tmp_path, caplog):
    """The pretended GPU does not say how much memory it has, so nothing can be known to fit beside the engine."""
    classifier = {"model": {"id": tiny_classifier(tmp_path / "classifier")}, "labels": {"toxicity": "toxic"}}
    score = {"scorer": "classifier", "classifier": classifier, "unvalidated_languages": True}
    models = {"model": tiny_model, "adapter": None, "merged": tiny_model}
    execution = {"engine": "transformers", "batch_size": 10}
    tallies = run(str(tmp_path), models, execution, score, names=["base"])
    assert "all prompts are sampled first and scored then" in caplog.text
    sampled, scored = tallies["generate", "base"], tallies["score", "base"]
    assert (sampled.num_completions, scored.num_completions) == (40, 40)
    assert scored.began > sampled.ended
    again = run(str(tmp_path), models, execution, score, names=["base"])
    assert again["score", "base"].num_reused == 20
