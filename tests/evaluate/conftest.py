"""Tiny random models and tokenizers made on the spot."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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
    T5Config,
    T5ForConditionalGeneration,
)

CORPUS = [
    "the old cat sat on the mat",
    "you are an idiot",
    "der alte Mann ist dumm",
    "여기에 고양이가 있다",
    "नमस्ते दुनिया",
]


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level BPE of 300 tokens, as GPT-2's and Llama 3's, without a beginning-of-text token."""
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
    """A BPE with bytes to fall back on that puts a word mark before any text, as Llama 2's."""
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


@pytest.fixture(scope="session")
def t5_tokenizer():
    """A unigram tokenizer with word marks that ends every text, as mT5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


@pytest.fixture(scope="session")
def causal_models():
    """Models with four ways to know a position: rotary, learned, ALiBi, and rotary with a sliding window."""
    torch.manual_seed(0)
    small = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    rotary = {**small, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
    made = {
        "llama": LlamaForCausalLM(LlamaConfig(**rotary)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "bloom": BloomForCausalLM(BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4)),
        "gemma3": Gemma3ForCausalLM(
            Gemma3TextConfig(**rotary, head_dim=8, sliding_window=8, final_logit_softcapping=2.0)
        ),
    }
    for model in made.values():
        for weight in model.parameters():  # at their usual scale random models are nearly uniform
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.3)
    return {name: model.eval() for name, model in made.items()}


@pytest.fixture(scope="session")
def t5_model():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()
