"""A model small enough to train in a second, its tokenizer, a few pairs, and the trainer for them."""

from xgray.rows import PreferencePair

PAIRS = [
    PreferencePair(f"The {who} came home and", f" said a kind word to {whom}.", f" called {whom} a stupid idiot!")
    for who in ("neighbour", "teacher", "old man", "baker", "driver")
    for whom in ("me", "the children", "everybody in the street", "the dog")
]


def make_tiny_model(folder):
    """Write a two-layer Llama with tied embeddings and a byte-level tokenizer, and return the folder's name."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [pair.prompt + completion for pair in PAIRS for completion in (pair.chosen, pair.rejected)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def build_tiny_trainer(model, section, folder, *, pairs=PAIRS, seed=0, callbacks=()):
    """Build a trainer whose files lie in ``folder`` and whose reference cache lies beside it."""
    from xgray.models.load import load_tokenizer
    from xgray.train.pairs import prepare_pairs
    from xgray.train.preference_trainer import TrainerFiles
    from xgray.train.reference import ReferenceCache
    from xgray.train.trainer import StartingModel, build_trainer

    tokenizer = load_tokenizer(model)
    folder.mkdir()
    reference = ReferenceCache.of(section, "tiny", str(folder.parent / "cache"))
    return build_trainer(
        StartingModel(model, None, tokenizer),
        section,
        prepare_pairs(pairs, tokenizer, section, seed),
        TrainerFiles(reference, folder / "work", folder / "metrics.jsonl"),
        seed,
        callbacks,
    )
