"""Tiny causal language models with random weights and a small tokenizer, as folders that from_pretrained reads."""

import functools

from xgray.config import Score
from xgray.data.labelled import read_labelled

TURNS = ["<|im_start|>", "<|im_end|>"]
ANSWERS = ["safe", "unsafe", "Safe", "Unsafe", "Cont", "Yes", "No", "yes", "no"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # vLLM has no smaller one on a CPU
}
WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "granite": SIZES | {"logits_scaling": 2.0},
    "gemma2": SIZES | WINDOWED | {"final_logit_softcapping": 30.0},
    "gemma3_text": SIZES | WINDOWED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
"""What of each architecture's configuration is tiny; Gemma's windows are shorter than the prompts here."""


@functools.cache
def _trained():
    """Return a byte-level BPE with each of ``ANSWERS`` as one token, at a text's start and after a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>", *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    answers = [f"{before}{answer}" for answer in ANSWERS for before in ("", "Answer: ")]
    bpe.train_from_iterator([*(row.text for row in read_labelled("embedded")), *answers * 1000], trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return bpe


def tiny_tokenizer(chat_template=CHAT):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_trained(), bos_token="<s>", eos_token="</s>", additional_special_tokens=TURNS
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_guard(folder, kind="llama", max_length=256, chat_template=CHAT):
    """Write a model and return the folder's path."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    words = tiny_tokenizer(chat_template)
    sizes = {"vocab_size": len(words), "max_position_embeddings": max_length} | KINDS.get(kind, SIZES)
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    if kind == "llama4":
        model = _with_vision(sizes | tokens)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **tokens))
    for parameter in model.parameters():  # With larger weights the texts' scores differ more.
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def _with_vision(text_config):
    """Return a model for text and images, as Llama Guard 4 is; its experts are left out as they are there."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "vision_output_dim": 32,
        "projector_input_dim": 32,
        "projector_output_dim": 32,
    }
    experts = {"intermediate_size_mlp": 64, "moe_layers": [], "num_local_experts": 1}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text_config | experts, vision_config=vision))


def guard_section(folder, dtype="float32", execution=None, attributes=("toxicity",), **options):
    """Return the ``score`` section of a tiny guard."""
    defaults = {"labels": {"toxicity": {"safe": 0, "unsafe": 1}}, "languages": ["en", "zh"]}
    guard = {"model": {"id": folder, "dtype": dtype}, **defaults, **options}
    return Score.model_validate(
        {"scorer": "guard", "guard": guard, "attributes": list(attributes), "execution": execution or {}}
    )
