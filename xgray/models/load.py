"""Load configurations, tokenizers and models, and check prompts against a model's context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.source import local_weights, resolve
from xgray.rows import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def device_name() -> str:
    """Where models run in this process: the GPU where there is one, otherwise this machine's cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({torch.get_num_threads()} threads)"


def context_length(config: Any) -> int:
    """The longest sequence that a model of this Hugging Face configuration takes; 2**31 where it names none (BLOOM)."""
    text_config = config.get_text_config()
    named = (getattr(text_config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((int(one) for one in named if one is not None and one > 0), 2**31)  # XLNet says -1


def check_lengths(
    blocks: Iterable[Sequence[Prompt]], tokenizer: PreTrainedTokenizerBase, limit: int, reason: str
) -> None:
    """Refuse prompts that a model cannot go on from.

    Args:
        limit: the most tokens of a prompt, for a ``reason`` that the message names.

    Raises:
        InputError: names the prompts that are empty, or those that are longer.
    """
    empty: list[str] = []
    long: list[str] = []
    for prompts in blocks:
        for prompt, ids in zip(prompts, tokenizer([one.text for one in prompts])["input_ids"], strict=True):
            if not ids or not prompt.text.strip():
                empty.append(prompt.prompt_id)
            if len(ids) > limit:
                long.append(f"{prompt.prompt_id} ({len(ids)})")
    for problem, found in (
        ("prompts without any text", empty),
        (f"prompts longer than {limit} tokens ({reason})", long),
    ):
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise InputError(f"{problem}: {', '.join(found[:5])}{more}")


def end_tokens(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends or [])


def load_config(path: str, revision: str | None = None) -> Any:
    """The model's Hugging Face configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(local_weights(path), revision=revision)


def load_skeleton(path: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model without its weights, to ask for the shapes of its modules."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(load_config(path, revision))
    return model


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left, with a padding token (the end-of-text token where it has none)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_weights(path), revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(path: str, dtype: str, revision: str | None = None, device: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode, on ``device`` (by default CUDA where there is one).

    Raises:
        InputError: the weights are missing, torn, or those of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    return _loaded(AutoModelForCausalLM, path, dtype, revision, device)[0]


def load_model(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a section of the experiment file, as :func:`load_causal_lm` gives it, and its tokenizer.

    Raises:
        InputError: its weights are missing, torn, or those of another kind of model.
    """
    path = resolve(model)
    return load_causal_lm(path, model.dtype, model.revision), load_tokenizer(path, model.revision)


def load_sequence_classifier(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """A sequence classifier in evaluation mode, on CUDA where there is one; its weights are safetensors.

    Raises:
        InputError: the weights are missing, in part or all, torn, or those of another kind of model.
    """
    from transformers import AutoModelForSequenceClassification

    model, info = _loaded(AutoModelForSequenceClassification, path, dtype, revision, use_safetensors=True)
    if missing := sorted(info["missing_keys"]):  # transformers makes them up at random
        raise InputError(f"cannot load the model {path!r}: it has no weights {', '.join(missing[:3])}: no classifier")
    return model


def _loaded(
    kind: Any, path: str, dtype: str, revision: str | None, device: str | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of the weights that it found."""
    import torch
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        model, info = kind.from_pretrained(
            local_weights(path), revision=revision, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    # Files that are missing, an architecture of another kind, a file that is torn.
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    return model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu")), info
