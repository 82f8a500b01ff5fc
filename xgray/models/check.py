"""Check before anything starts that a model, its tokenizer and the experiment's lengths fit together.

Only configurations, tokenizers and headers are read. The weights of a model of the hub are not downloaded for it: the
process that loads them checks them (:func:`xgray.models.load.check_loadable`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.config import Model
from xgray.errors import InputError
from xgray.models.complete import check_adapter, check_weights
from xgray.models.files import has_tokenizer
from xgray.models.load import end_tokens, load_config, load_skeleton, load_tokenizer
from xgray.models.source import is_adapter, local_weights, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHANGES_TEXTS: dict[str, Any] = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "penalty_alpha": 0,
    "remove_invalid_values": False,
    "bad_words_ids": [],
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "stop_strings": [],
    "sequence_bias": {},
    "watermarking_config": {},
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
}
"""Fields of a ``generation_config.json`` that change texts beyond what the section ``generate`` states, each with the
value, next to null, that changes nothing."""

PROBE = "a"
"""A text whose tokens show what a tokenizer adds at either end."""


def check_model(model: Model, kind: Any = None, tokenizer_of: Model | None = None) -> Any:
    """Refuse a model that cannot be loaded whole, or whose tokenizer does not fit it; return its configuration.

    Args:
        model: a whole model.
        kind: the class of transformers that loads a model which only measures; by default a causal language model that
            is trained or sampled, whose tokenizer is checked as well.
        tokenizer_of: the model whose tokenizer stands in where this one has none.

    Raises:
        InputError: says what is missing or does not fit, and what to do.
    """
    path = resolve(model)
    try:
        skeleton = load_skeleton(path, model.revision, kind)
        if Path(path).is_dir():
            check_weights(path, skeleton)
        if kind is None:
            source = model if tokenizer_of is None or not lacks_tokenizer(path) else tokenizer_of
            check_tokenizer(path, skeleton.config, load_tokenizer(resolve(source), source.revision))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the model {path!r}: {str(error).splitlines()[0]}") from None
    return skeleton.config


def check_checkpoint(checkpoint: Model, base: Model) -> Any:
    """Refuse a tuned model or an adapter that does not fit; return the configuration of the model that is sampled.

    Raises:
        InputError: as :func:`check_model`; or the adapter does not fit the base model.
    """
    path = resolve(checkpoint)
    if not is_adapter(path):
        return check_model(checkpoint, tokenizer_of=base)
    skeleton = load_skeleton(resolve(base), base.revision)
    config = skeleton.config
    check_adapter(Path(path), skeleton)
    return config


def lacks_tokenizer(path: str) -> bool:
    """Return whether ``path`` is a local folder without a tokenizer."""
    return Path(path).is_dir() and not has_tokenizer(Path(path))


def check_tokenizer(path: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with which a causal language model cannot be trained and sampled.

    Raises:
        InputError: it has no end-of-text token, one of its special tokens lies outside the embedding, or it ends every
            text with a token of its own.
    """
    where = f"the tokenizer of {path!r}"
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{where} names no end-of-text token, which ends every completion in training and sampling. Name it in "
            'tokenizer_config.json: "eos_token": "..."'
        )
    size = config.get_text_config().vocab_size
    for role in ("eos_token", "bos_token", "pad_token"):
        token_id = getattr(tokenizer, f"{role}_id")
        if token_id is not None and token_id >= size:
            without = " Without a pad_token the end-of-text token pads." if role == "pad_token" else ""
            raise InputError(
                f"{where}: its {role} {getattr(tokenizer, role)!r} has the id {token_id}, but the embedding has {size} "
                f"rows. Correct {role} in tokenizer_config.json, or save the model after resize_token_embeddings."
                f"{without}"
            )
    _, end = added_tokens(tokenizer)
    if end:
        raise InputError(
            f"{where} ends every text with {' '.join(end)}, so that no prompt could be continued. Set add_eos_token: "
            "false in tokenizer_config.json, or save the tokenizer without that post-processor."
        )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Return the tokens that a tokenizer puts before and after every text."""
    bare = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    whole = tokenizer(PROBE)["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    start = next((start for start in starts if whole[start : start + len(bare)] == bare), 0)
    tokens = tokenizer.convert_ids_to_tokens(whole)
    return tokens[:start], tokens[start + len(bare) :]


def generation_config(path: str, revision: str | None) -> dict[str, Any]:
    """Return the content of a model's ``generation_config.json``, which no engine follows; empty where there is none.

    Args:
        path: a local folder or a hub id.
        revision: a commit of the hub.
    """
    name = "generation_config.json"
    if Path(path).is_dir():
        file = Path(path) / name
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(path, name, revision=revision))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return {}
    try:
        content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def unfollowed(model: Model) -> dict[str, Any]:
    """Return what a model's ``generation_config.json`` would change in texts, were it followed.

    Where it is not empty, it enters the fingerprint of the completions: earlier versions followed it, transformers all
    of these fields and vLLM the ends, so that their texts are others.
    """
    path = resolve(model)
    content = generation_config(path, model.revision)
    stated = {
        name: content[name]
        for name, neutral in CHANGES_TEXTS.items()
        if content.get(name, neutral) not in (None, neutral)
    }
    ends = content.get("eos_token_id")
    if ends is not None and _ids(ends) != _ids(_stated_ends(path, model.revision)):
        stated["eos_token_id"] = ends
    return stated


def _ids(value: Any) -> set[int]:
    return {value} if isinstance(value, int) else set(value or [])


def _stated_ends(path: str, revision: str | None) -> Any:
    """Return ``eos_token_id`` of the configuration, read without transformers, which takes seconds to import."""
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download

        path = str(Path(hf_hub_download(path, "config.json", revision=revision)).parent)
    try:
        content = json.loads((Path(path) / "config.json").read_text("utf-8"))
        return content.get("eos_token_id", content.get("text_config", {}).get("eos_token_id"))
    except (OSError, ValueError, AttributeError):
        return None


def sampling_facts(path: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what a checkpoint brings to its texts, for the manifest.

    Args:
        path: what :func:`xgray.models.source.local_weights` takes.
        revision: a commit of the hub.
        tokenizer: the one that is sampled with.
    """
    begin, _ = added_tokens(tokenizer)
    return {
        "end_tokens": tokenizer.convert_ids_to_tokens(end_tokens(load_config(path, revision), tokenizer)),
        "texts_begin_with": begin,
        "not_followed": {
            name: value
            for name, value in generation_config(local_weights(path), revision).items()
            if not name.startswith(("_", "output_", "transformers_version")) and value is not None
        },
    }
