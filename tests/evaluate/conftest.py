"""Tiny random models, and tokenizers trained on a few words."""

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
    """A BPE tokenizer with byte fallback that puts a word mark before any text, like that of Llama 2."""
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
    """A unigram tokenizer with word marks that appends an end-of-text token, like that of mT5."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


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
