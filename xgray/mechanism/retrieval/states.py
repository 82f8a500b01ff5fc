"""Sentence states: the mean over a text's tokens of each layer's hidden states.

Layers are those of transformers' ``hidden_states``, as the paper's script takes them: 0 is the embeddings' output, l
the residual stream after block l, and the last one is taken after the final norm. The mean is over the tokens that
the tokenizer makes of the text, those that it adds (a beginning of text) among them, and never over padding, which
stands on the right: no token of a causal model sees it, whatever its kind of positions. Each layer is averaged when it
is there, so that no more than a block's states of all tokens are held at a time.

Run by workers only (it imports torch); see :mod:`xgray.experiment.stages.retrieve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xgray.errors import InputError
from xgray.mechanism.retrieval.files import Encoded
from xgray.models.batches import by_length, padded
from xgray.models.inference import inference
from xgray.models.load import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_tokens: int,
    batch_size: int,
) -> Encoded:
    """The states of each text, in the order given.

    Args:
        max_tokens: of a text; its first ones are taken, and no more than the model's context holds.
        batch_size: texts in one forward pass.

    Raises:
        InputError: a text has no tokens, or the model's states are not finite.
    """
    longest = min(max_tokens, context_length(model.config))
    whole = tokenizer(list(texts))["input_ids"]
    for text, ids in zip(texts, whole, strict=True):
        if not ids:
            raise InputError(f"retrieve.parallel: the model's tokenizer makes no token of the text {text!r}")
    tokens = [ids[:longest] for ids in whole]
    made, places = [], []
    with inference():
        for chosen in by_length(tokens, batch_size):
            made.append(_pooled(model, [tokens[at] for at in chosen]))
            places += chosen
    states = torch.cat(made, dim=1)[:, np.argsort(places)]
    finite = states.isfinite().all(dim=-1).all(dim=-1)
    if not finite.all():
        raise InputError(
            f"model.dtype: hidden states are not finite in {model.dtype} from layer {int(finite.int().argmin())} on; "
            "take float32 or bfloat16, and see that the weights are whole"
        )
    return Encoded(
        states.numpy(),
        np.array([len(ids) for ids in tokens], np.int32),
        np.array([len(ids) > longest for ids in whole], np.bool_),
    )


def _pooled(model: PreTrainedModel, tokens: Sequence[list[int]]) -> torch.Tensor:
    """The states of one batch, ``(num_layers, batch, hidden_size)``."""
    ids, mask = padded(tokens, model.device)
    share = mask / mask.sum(dim=1, keepdim=True)
    means: list[torch.Tensor] = []

    def pool(states: torch.Tensor) -> None:
        means.append(torch.einsum("bsh,bs->bh", states.float(), share))

    def pool_input(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        pool(given[0] if given else named["hidden_states"])

    handles = [one.register_forward_pre_hook(pool_input, with_kwargs=True) for one in _blocks(model)]
    try:
        # The model below its head: nobody asks for logits.
        pool(model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(means).cpu()


def _blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's layers, from the first to the last.

    Raises:
        InputError: they are not held as one list.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    raise InputError(
        f"model.id: retrieve finds no list of {num_layers} layers in a {type(model).__name__}; "
        "take a decoder that has its blocks in one list, or leave retrieve out"
    )
