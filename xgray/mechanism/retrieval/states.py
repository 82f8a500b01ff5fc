"""Sentence states: the mean over a text's tokens of each layer's hidden states.

Layers are numbered as in transformers' ``hidden_states``, which the paper's script uses: 0 is the output of the
embeddings, l the residual stream after layer l, except that the last one is taken after the final norm. The mean is
over all tokens of the tokenizer, including those that it adds, such as a beginning of text. Padding is not part of the
mean. It is on the right, where no token of a causal model attends to it. Each layer is averaged as soon as it is
computed, so that the states of all tokens are held of one layer at a time.

Only workers import this module, because it imports torch; see :mod:`xgray.experiment.stages.retrieve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xgray.errors import InputError
from xgray.mechanism.neurons import transformer_layers
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
    """Compute the sentence states of each text, in the order given.

    Args:
        max_tokens: longer texts are cut after this many tokens, or at the model's context if that is shorter.
        batch_size: texts in one forward pass.

    Raises:
        InputError: a text has no tokens, or the model's states are not finite.
    """
    limit = min(max_tokens, context_length(model.config))
    tokens = tokenizer(list(texts))["input_ids"]
    for text, ids in zip(texts, tokens, strict=True):
        if not ids:
            raise InputError(f"retrieve.parallel: the model's tokenizer makes no token of the text {text!r}")
    kept = [ids[:limit] for ids in tokens]
    batches, order = [], []
    with inference():
        for batch in by_length(kept, batch_size):
            batches.append(_batch_states(model, [kept[index] for index in batch]))
            order += batch
    states = torch.cat(batches, dim=1)[:, np.argsort(order)]
    is_finite = states.isfinite().all(dim=-1).all(dim=-1)
    if not is_finite.all():
        raise InputError(
            f"retrieve.dtype: hidden states are not finite in {model.dtype} from layer {int(is_finite.int().argmin())} "
            "on. Take float32 or bfloat16, and check that the weights are complete."
        )
    return Encoded(
        states.numpy(),
        np.array([len(ids) for ids in kept], np.int32),
        np.array([len(ids) > limit for ids in tokens], np.bool_),
    )


def _batch_states(model: PreTrainedModel, tokens: Sequence[list[int]]) -> torch.Tensor:
    """Return the sentence states of one batch, ``(num_layers, batch, hidden_size)`` in float32."""
    ids, mask = padded(tokens, model.device)
    weights = mask / mask.sum(dim=1, keepdim=True)
    means: list[torch.Tensor] = []

    def pool(states: torch.Tensor) -> None:
        means.append(torch.einsum("bsh,bs->bh", states.float(), weights))

    def pool_input(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pool(args[0] if args else kwargs["hidden_states"])

    layers = transformer_layers(model)
    handles = [layer.register_forward_pre_hook(pool_input, with_kwargs=True) for layer in layers]
    try:
        # The base model, without the output head: no logits are needed.
        pool(model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(means).cpu()
