"""The FLOPs of a training step, against PyTorch's counter and by hand."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
)

from xgray.train.flops import model_flops, peak_flops

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 500}
ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
GROUPED = SIZES | ENDS | {"intermediate_size": 160, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "gemma": Gemma3TextConfig(**GROUPED, head_dim=24, sliding_window=8),
    "cohere": CohereConfig(**GROUPED),
    "gpt2": GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=500, **ENDS),
    "bloom": BloomConfig(hidden_size=64, n_layer=3, n_head=4, vocab_size=500, **ENDS),
}
ROWS, LENGTH = 4, 40
COUNTS = {"computed_tokens": ROWS * LENGTH, "head_positions": ROWS * LENGTH, "attention_pairs": ROWS * LENGTH**2}


def make(name, **changes):
    config = CONFIGS[name]
    # The counter does not know the attention kernel of CPUs.
    return AutoModelForCausalLM.from_config(type(config)(**config.to_dict() | changes), attn_implementation="eager")


def counted(model):
    """The FLOPs of a forward and a backward pass, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(ROWS, LENGTH, dtype=torch.long)).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_full_tuning_is_what_pytorch_counts(name):
    model = make(name)
    assert model_flops(model).total(**COUNTS) == pytest.approx(counted(model), rel=0.01)


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_is_what_pytorch_counts(name):
    model = get_peft_model(make(name), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    expected = counted(model)
    assert model_flops(model).total(**COUNTS) == pytest.approx(expected, rel=0.01)
    assert expected < 0.8 * model_flops(make(name)).total(**COUNTS)


def test_a_first_block_without_a_gradient_of_its_input_is_less_than_a_hundredth():
    model = get_peft_model(
        make("llama", num_hidden_layers=16), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert model_flops(model).total(**COUNTS) == pytest.approx(counted(model), rel=0.01)


def test_a_llama_by_hand():
    flops = model_flops(make("llama"))
    queries_and_output, keys_and_values, mlp = 2 * 64 * 64, 2 * 64 * 32, 3 * 64 * 160
    assert flops.token == 6 * 3 * (queries_and_output + keys_and_values + mlp)
    assert flops.head_position == 6 * 64 * 500
    assert flops.attention_pair == 12 * 3 * 64


def test_a_mixture_of_experts_has_no_number():
    with torch.device("meta"):
        assert model_flops(AutoModelForCausalLM.from_config(MixtralConfig(**GROUPED, num_local_experts=2))) is None


def test_the_peak_of_a_cpu_is_reached_by_no_smaller_product():
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e8 < peak < 1e14
