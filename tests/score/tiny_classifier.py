"""Tiny sequence classifiers with random weights and a tokenizer of their own, as folders that from_pretrained takes."""

from xgray.config import Score
from xgray.data.labelled import read_labelled

LABELS = ["harmless", "toxic", "insulting"]


def tokenizer(max_length, kind):
    """Byte-level pairs learnt from the embedded texts; encoders have their special tokens around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((one.text for one in read_labelled("embedded")), trainer)
    if kind != "llama":
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=max_length
    )


def tiny_classifier(folder, kind="xlm-roberta", max_length=64, labels=LABELS, **changes):
    """Write one; ``changes`` are fields of its configuration. Returns the folder as text."""
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
    for parameter in model.parameters():  # larger weights: texts get scores far from one another
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def classifier_section(folder, scorer="classifier", labels=None, execution=None, **settings):
    """The ``score`` section for a tiny classifier."""
    model = {"id": folder, "dtype": settings.pop("dtype", "float32")}
    declared = {"model": model, "labels": labels or {"toxicity": "toxic"}, "languages": ["en", "zh"]}
    return Score.model_validate({"scorer": scorer, "classifier": declared, "execution": execution or {}, **settings})
