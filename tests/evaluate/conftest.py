"""Tiny random models, and tokenizers trained on a few words."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from benchmarks.reference.tiny_models import CORPUS, make_marked_tokenizer, make_t5, make_t5_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE tokenizer with 300 tokens, like those of GPT-2 and Llama 3, without a beginning of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def marked_tokenizer():
    return make_marked_tokenizer()


@pytest.fixture(scope="session")
def t5_tokenizer():
    return make_t5_tokenizer()


@pytest.fixture(scope="session")
def causal_models():
    """Models with rotary, learned and ALiBi positions, and with a sliding window."""
    torch.manual_seed(0)
    small = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    rotary = {**small, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
    models_by_name = {
        "llama": LlamaForCausalLM(LlamaConfig(**rotary)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "bloom": BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4)),
        "gemma3": Gemma3ForCausalLM(
            Gemma3TextConfig(**rotary, head_dim=8, sliding_window=8, final_logit_softcapping=2.0)
        ),
    }
    for model in models_by_name.values():
        for weight in model.parameters():  # with weights of the usual scale, predictions are nearly uniform
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return {name: model.eval() for name, model in models_by_name.items()}


@pytest.fixture(scope="session")
def t5_model():
    return make_t5()
