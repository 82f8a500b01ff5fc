"""A tiny random model of each supported architecture, and a tokenizer of single bytes that fits all of them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, int]] = {
    "gpt2": {"vocab_size": 257, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "llama": SMALL,
    "cohere": SMALL,
    "gemma": SMALL | {"head_dim": 8},
    "gemma3_text": SMALL | {"head_dim": 8, "sliding_window": 8},
    "qwen2": SMALL,
}
"""By Hugging Face model type: GPT-2 and mGPT, BLOOM, Llama 2 and 3, Aya-23, Gemma, Gemma 3, Qwen 2."""


def make_model(kind: str, seed: int = 0) -> Any:
    """Make a model whose random weights, biases and gains are large enough for clear greedy choices."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{"bos_token_id": 0, "eos_token_id": 0, **CONFIGS[kind]})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.25)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
        elif "post_feedforward" in name:  # the norm's gain changes the direction of what the MLP writes
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def make_tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token for each byte, which pads on the left.

    Args:
        begins: whether it puts a beginning-of-text token before every text, as Llama's does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    )
    if begins:
        template = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 0)])
        tokenizer.post_processor = template
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", padding_side="left")
