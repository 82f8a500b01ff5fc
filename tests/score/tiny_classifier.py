"""Tiny sequence classifiers with random weights and a small tokenizer, as folders that from_pretrained reads."""

from xgray.config import Score
from xgray.data.labelled import read_labelled

LABELS = ["harmless", "toxic", "insulting"]


def tokenizer(max_length, kind):
    """Return a byte-level BPE tokenizer trained on the embedded texts; that of an encoder adds special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((row.text for row in read_labelled("embedded")), trainer)
    if kind != "llama":
        bpe.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=max_length
    )


def tiny_classifier(folder, kind="xlm-roberta", max_length=64, labels=LABELS, **changes):
    """Write a classifier and return the folder's path; ``changes`` are fields of its configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    words = tokenizer(max_length, kind)
    extra = {"llama": {"num_key_value_heads": 2}, "xlm-roberta": {"type_vocab_size": 1}}.get(kind, {})
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        # RoBERTa's positions start after the padding token's.
        max_position_embeddings=max_length + 2 if kind == "xlm-roberta" else max_length,
        pad_token_id=words.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: column for column, label in enumerate(labels)},
        **extra,
        **changes,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():  # With larger weights the texts' scores differ more.
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def classifier_section(folder, scorer="classifier", labels=None, execution=None, **settings):
    """Return the ``score`` section of a tiny classifier."""
    model = {"id": folder, "dtype": settings.pop("dtype", "float32")}
    options = {"model": model, "labels": labels or {"toxicity": "toxic"}, "languages": ["en", "zh"]}
    return Score.model_validate({"scorer": scorer, "classifier": options, "execution": execution or {}, **settings})
