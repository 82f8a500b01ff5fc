"""Tiny random models of the supported architectures, and tokenizers of the kinds that these models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

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


CORPUS = [
    "the old cat sat on the mat",
    "you are an idiot",
    "der alte Mann ist dumm",
    "여기에 고양이가 있다",
    "नमस्ते दुनिया",
]
"""What the unigram tokenizer is trained on."""


def make_model(kind: str, seed: int = 0, **fields: int) -> Any:
    """Make a model whose random weights, biases and gains are large enough for clear greedy choices.

    Args:
        kind: one of :data:`CONFIGS`.
        fields: of the configuration, such as other sizes.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{"bos_token_id": 0, "eos_token_id": 0, **CONFIGS[kind], **fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.25)
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
        elif "post_feedforward" in name:  # the norm's gain changes the direction of what the MLP writes
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def make_tokenizer(bos_token: str | None = None, begins: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a token for each byte, like those of GPT-2, BLOOM, Llama 3 and Cohere; it pads on the left.

    Args:
        bos_token: the beginning-of-text token; ``<end>``, the end of text, may be both.
        begins: whether it puts a beginning-of-text token before every text, as Llama's and Cohere's do.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<end>"] if bos_token in (None, "<end>") else ["<end>", bos_token]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    if begins and bos_token:
        ids = [(bos_token, special.index(bos_token))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos_token} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos_token, eos_token="<end>", padding_side="left"
    )


def make_marked_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer like Llama 2's: BPE with byte fallback, a word mark and a beginning token before any text."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for letter in ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁c", "▁ca", "▁cat", "at"]:
        vocabulary[letter] = len(vocabulary)
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("a", "t")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def make_t5_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer like mT5's: unigram with word marks, which appends an end-of-text token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def make_t5() -> T5ForConditionalGeneration:
    """Make an encoder-decoder of T5's architecture with random weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=90,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config).eval()


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Write a model and its tokenizer into a folder, and return the folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
