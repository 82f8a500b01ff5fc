"""The classifier that is fine-tuned: load it with an output for each attribute, and export it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.errors import InputError
from xgray.models.cache import save
from xgray.models.complete import refuse_incomplete
from xgray.models.load import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_encoder(path: str, revision: str | None, attributes: Sequence[str], seed: int) -> PreTrainedModel:
    """Load a model in float32 with a sigmoid output for each attribute; an output layer that does not fit is drawn.

    Args:
        path: what ``from_pretrained`` takes.
        revision: a commit of the hub.
        attributes: the names of the outputs, in order.
        seed: of the output layer's first weights.

    Raises:
        InputError: there is no such model, it has no weights as safetensors, or not all but the output layer's.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "num_labels": len(attributes),
        "id2label": dict(enumerate(attributes)),
        "label2id": {name: column for column, name in enumerate(attributes)},
        "problem_type": "multi_label_classification",
    }
    try:
        loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"model.id: cannot load {path!r}: {reason}. A model is loaded from safetensors only, never from pickles; "
            "convert it with save_pretrained"
        ) from None
    model: PreTrainedModel = loaded[0]
    refuse_incomplete(path, loaded[1], f"{model.base_model_prefix}.")
    if model.config.pad_token_id is None:  # a decoder needs it to find a text's last token
        model.config.pad_token_id = load_tokenizer(path, revision).pad_token_id
    return model


def export_encoder(model: PreTrainedModel, path: str, revision: str | None, max_length: int, folder: Path) -> None:
    """Write a model and its tokenizer, which cuts texts after ``max_length`` tokens, for the scorer ``classifier``.

    Args:
        model: the fine-tuned model.
        path: the model it was fine-tuned from, for the tokenizer.
        revision: its commit on the hub.
        max_length: the greatest length of a text in tokens while training.
        folder: where the files are written.

    Raises:
        OSError: the disk is full, or refuses the files for another reason.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    tokenizer.model_max_length = max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    save(model, folder)
    save(tokenizer, folder)
