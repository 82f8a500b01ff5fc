"""Load configurations, tokenizers and models, and check prompts against a model's context length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.gguf import quiet_deepspeed
from xgray.models.source import local_weights, resolve
from xgray.rows import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED_CONTEXT = 2**31
NUM_NAMED_PROMPTS = 5
"""Prompts that an error message names; of the others it gives the number."""


def device_name() -> str:
    """Return what models run on in this process: the GPU's name, or ``cpu (N threads)``."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"


def context_length(config: Any) -> int:
    """Return the most tokens that a model of this Hugging Face configuration reads.

    This is ``UNLIMITED_CONTEXT`` where the configuration names no limit, as BLOOM's, or a negative one, as XLNet's.
    """
    text_config = config.get_text_config()
    limits = (getattr(text_config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(limit) for limit in limits if limit is not None and limit > 0), UNLIMITED_CONTEXT)


def sequence_limit(config: Any, tokenizer_limit: int) -> int:
    """Return the number of tokens in the longest sequence that a classifier takes, special tokens included.

    Args:
        config: the model's Hugging Face configuration.
        tokenizer_limit: the tokenizer's ``model_max_length``.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    quiet_deepspeed()
    with torch.device("meta"):
        skeleton = AutoModelForSequenceClassification.from_config(config)
    # RoBERTa and related models number positions from after the padding token's.
    tables = [module for name, module in skeleton.named_modules() if name.endswith("position_embeddings")]
    first_positions = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return int(min(tokenizer_limit, context_length(config) - max(first_positions, default=0)))


def check_lengths(
    blocks: Iterable[Sequence[Prompt]], tokenizer: PreTrainedTokenizerBase, limit: int, reason: str
) -> None:
    """Refuse prompts that a model cannot continue.

    Args:
        blocks: The prompts, a few at a time.
        tokenizer: The model's tokenizer.
        limit: The most tokens that a prompt may have.
        reason: What sets the limit, for the error message.

    Raises:
        InputError: prompts are empty or too long; the message names them.
    """
    empty: list[str] = []
    too_long: list[str] = []
    for prompts in blocks:
        token_ids = tokenizer([prompt.text for prompt in prompts])["input_ids"]
        for prompt, ids in zip(prompts, token_ids, strict=True):
            if not ids or not prompt.text.strip():
                empty.append(prompt.prompt_id)
            if len(ids) > limit:
                too_long.append(f"{prompt.prompt_id} ({len(ids)})")
    for problem, prompts_named in (
        ("prompts without any text", empty),
        (f"prompts longer than {limit} tokens ({reason})", too_long),
    ):
        if prompts_named:
            num_others = len(prompts_named) - NUM_NAMED_PROMPTS
            others = f" and {num_others} more" if num_others > 0 else ""
            raise InputError(f"{problem}: {', '.join(prompts_named[:NUM_NAMED_PROMPTS])}{others}")


def end_tokens(model: PreTrainedModel) -> list[int]:
    """Return the ids of the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])


def load_config(path: str, revision: str | None = None) -> Any:
    """Load a model's Hugging Face configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(local_weights(path), revision=revision)


def load_skeleton(path: str, revision: str | None = None) -> PreTrainedModel:
    """Build a causal language model without its weights, to read the shapes of its modules."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(path, revision))
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left; without a padding token it pads with the end-of-text token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_weights(path), revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(path: str, dtype: str, revision: str | None = None, device: str | None = None) -> PreTrainedModel:
    """Load a causal language model in evaluation mode.

    Args:
        path: What :func:`xgray.models.source.local_weights` takes.
        dtype: The name of a torch data type, for example ``float32``.
        revision: A commit, tag or branch of the hub.
        device: By default CUDA where there is a GPU, otherwise the CPU.

    Raises:
        InputError: the weights are missing, cut off, or those of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, dtype, revision, device)[0]


def load_model(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the causal language model of a section of the experiment file, and its tokenizer.

    Raises:
        InputError: the weights are missing, cut off, or those of another kind of model.
    """
    path = resolve(model)
    return load_causal_lm(path, model.dtype, model.revision), load_tokenizer(path, model.revision)


def load_sequence_classifier(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """Load a sequence classifier from safetensors in evaluation mode, on CUDA where there is a GPU.

    Raises:
        InputError: weights are missing, cut off, or those of another kind of model.
    """
    from transformers import AutoModelForSequenceClassification

    return _load_scorer(AutoModelForSequenceClassification, path, dtype, revision, "classifier")


def load_guard(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model that scores texts, as :func:`load_sequence_classifier` loads a classifier.

    Raises:
        InputError: weights are missing, cut off, or those of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    return _load_scorer(AutoModelForCausalLM, path, dtype, revision, "causal language model")


def _load_scorer(kind: Any, path: str, dtype: str, revision: str | None, name: str) -> PreTrainedModel:
    model, info = _load(kind, path, dtype, revision, use_safetensors=True)
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise InputError(
            f"cannot load the model {path!r}: it has no weights {', '.join(missing[:3])}, so it is no {name}"
        )
    return model


def _load(
    kind: Any, path: str, dtype: str, revision: str | None, device: str | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the model, and what transformers reports about the weights (``output_loading_info``)."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            local_weights(path), revision=revision, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    # In this order: missing files, an architecture of another kind, a file that is cut off.
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), info
