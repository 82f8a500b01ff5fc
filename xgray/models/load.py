"""Load configurations, tokenizers and models, and check prompts against a model's context length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.complete import check_weights, refuse_incomplete
from xgray.models.files import has_tokenizer
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
        skeleton = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
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


def end_tokens(config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end a text: the tokenizer's, which training writes, and the configuration's.

    Those of a ``generation_config.json`` do not count, as nothing of it does.
    """
    ends = config.get_text_config().eos_token_id
    stated = [ends] if isinstance(ends, int) else list(ends or [])
    return sorted({*stated, tokenizer.eos_token_id} - {None})


def load_config(path: str, revision: str | None = None) -> Any:
    """Load a model's Hugging Face configuration. Code in the model's folder is never run, and nobody is asked.

    Raises:
        InputError: the model needs code of its own.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(local_weights(path), revision=revision, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise InputError(
            f"cannot load the model {path!r}: it needs Python code from its own folder, which xgray never runs. Name a "
            "model whose architecture transformers has."
        ) from None


def load_skeleton(path: str, revision: str | None = None, kind: Any = None) -> PreTrainedModel:
    """Build a model without its weights, to read the names and shapes of its modules.

    Args:
        path: What :func:`xgray.models.source.local_weights` takes.
        revision: A commit, tag or branch of the hub.
        kind: A class of transformers that builds it; by default ``AutoModelForCausalLM``.

    Raises:
        InputError: the architecture is of another kind.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quiet_deepspeed()
    config = load_config(path, revision)
    if kind is None:
        refuse_other_kinds(path, config)
    with torch.device("meta"):
        model: PreTrainedModel = (kind or AutoModelForCausalLM).from_config(config, trust_remote_code=False)
    return model


def refuse_other_kinds(path: str, config: Any) -> None:
    """Refuse a model that is no causal language model.

    Raises:
        InputError: names the architecture.
    """
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        what = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        raise InputError(
            f"cannot load the model {path!r}: its architecture, {config.model_type}, is {what}. Training, sampling and "
            "the stages inside the network take causal language models; an encoder-decoder only measures fluency "
            "(evaluate.fluency.kind: seq2seq)."
        )


def check_device(path: str, config: Any, has_cuda: bool) -> None:
    """Refuse weights in 4 or 8 bits of bitsandbytes where there is no GPU.

    Raises:
        InputError: there is none.
    """
    quantization = getattr(config, "quantization_config", None) or {}
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if values.get("quant_method") == "bitsandbytes" and not has_cuda:
        bits = 4 if values.get("load_in_4bit") else 8
        raise InputError(
            f"cannot load the model {path!r}: its weights are stored in {bits} bits (bitsandbytes), which only a CUDA "
            "GPU computes with, and there is none. Name the model in full precision."
        )


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that pads on the left; without a padding token it pads with the end-of-text token.

    Raises:
        InputError: the folder holds none, or a damaged one.
    """
    from transformers import AutoTokenizer

    local = local_weights(path)
    if Path(local).is_dir() and not has_tokenizer(Path(local)):  # transformers would make an empty one
        raise InputError(
            f"the model {path!r} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json). Save that of the "
            "model it was made from into the folder with save_pretrained."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            local, revision=revision, padding_side="left", trust_remote_code=False
        )
    except Exception as error:  # the tokenizers library raises this very type
        if not Path(local).is_dir():
            raise  # the hub may answer another time
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"cannot read the tokenizer of {path!r}: {' '.join([type(error).__name__, *reason])}. Copy or download its "
            "files again."
        ) from None
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

    return _load(AutoModelForCausalLM, path, dtype, revision, device)


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

    return _load(AutoModelForSequenceClassification, path, dtype, revision)


def load_guard(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model that scores texts, as :func:`load_sequence_classifier` loads a classifier.

    Raises:
        InputError: weights are missing, cut off, or those of another kind of model.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path, dtype, revision)


def load_seq2seq(path: str, dtype: str, revision: str | None = None) -> PreTrainedModel:
    """Load an encoder-decoder, as :func:`load_causal_lm` loads a causal language model.

    Raises:
        InputError: weights are missing, cut off, or those of another kind of model.
    """
    from transformers import AutoModelForSeq2SeqLM

    return _load(AutoModelForSeq2SeqLM, path, dtype, revision)


def check_loadable(path: str, revision: str | None = None, kind: Any = None) -> PreTrainedModel:
    """Refuse a model that would not be loaded whole, before an engine or a trainer starts; return its skeleton.

    Args:
        path: What :func:`xgray.models.source.local_weights` takes.
        revision: A commit, tag or branch of the hub.
        kind: A class of transformers that loads it; by default ``AutoModelForCausalLM``.

    Raises:
        InputError: the architecture is of another kind, or weights are missing, unexpected or of another shape.
    """
    try:
        skeleton = load_skeleton(path, revision, kind)
    except (OSError, ValueError) as error:  # missing files, an architecture of another kind
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    check_weights(local_weights(path), skeleton, revision)
    return skeleton


def _load(kind: Any, path: str, dtype: str, revision: str | None, device: str | None = None) -> PreTrainedModel:
    """Load a whole model from safetensors, in evaluation mode."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    skeleton = check_loadable(path, revision, None if kind is AutoModelForCausalLM else kind)
    has_cuda = torch.cuda.is_available()
    check_device(path, skeleton.config, has_cuda)
    try:
        model, info = kind.from_pretrained(
            local_weights(path),
            revision=revision,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    # In this order: missing files, an architecture of another kind, a missing package, a file that is cut off.
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    refuse_incomplete(path, info)
    follow_experiment(model)
    loaded: PreTrainedModel = model.eval().to(device or ("cuda" if has_cuda else "cpu"))
    return loaded


def follow_experiment(model: PreTrainedModel) -> None:
    """Take away what a checkpoint says about sampling: the experiment file alone decides it."""
    from transformers import GenerationConfig

    if model.can_generate():
        model.generation_config = GenerationConfig(eos_token_id=model.config.get_text_config().eos_token_id)
