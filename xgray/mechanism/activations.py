"""The mean activation of chosen neurons while a model goes on after a prompt, greedily.

The activation that belongs to a generated token is the one at the position from which the token is predicted: the
prompt's last token for the first one, then each generated token for the next. So T tokens have T activations, and the
last token is never read itself. The paper's script takes the same positions. A text that ends early counts up to and
with its end-of-text token; the paper's script goes on after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xgray.config import Neuron
from xgray.errors import InputError
from xgray.mechanism.neurons import capturing
from xgray.models.batches import by_length, padded, token_positions
from xgray.models.load import end_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    neurons: Sequence[Neuron],
    new_tokens: int,
    batch_size: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Mean activations, ``(num_texts, num_neurons)``, and the number of tokens that each is over, ``(num_texts,)``.

    Every text is read once and goes on from its cache. Of the activations only running sums in float32 are kept. Texts
    of similar length share a batch, whatever their order.

    Args:
        texts: each of at least one token, and short enough; see :func:`xgray.models.load.check_lengths`.
        neurons: all of the model; see :func:`xgray.mechanism.neurons.check_neurons`.
        new_tokens: greedy tokens after each text, fewer where it ends.

    Raises:
        InputError: a text has no tokens, or what the model computes are no numbers.
    """
    from xgray.models.inference import inference

    tokens: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []
    if [] in tokens:
        raise InputError(f"text {tokens.index([]) + 1} of {len(texts)} is empty: it has no position to go on from")
    means = np.empty((len(texts), len(neurons)), dtype=np.float32)
    counts = np.empty(len(texts), dtype=np.int32)
    with inference():
        for batch in by_length(tokens, batch_size):
            sums, num_tokens, logits = _sums(model, [tokens[index] for index in batch], neurons, new_tokens)
            _check_numbers(sums, logits, neurons, batch, len(texts))
            means[batch], counts[batch] = sums / num_tokens[:, None], num_tokens
    return means, counts


def _sums(
    model: PreTrainedModel, tokens: list[list[int]], neurons: Sequence[Neuron], new_tokens: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Of each text: sums of the activations, ``(batch, num_neurons)``, how many, and the sum of the best logits."""
    import torch

    ids, mask = padded(tokens, model.device, left=True)
    place = token_positions(mask)
    sums = torch.zeros(len(tokens), len(neurons), device=model.device)
    num_tokens = torch.zeros(len(tokens), dtype=torch.int32, device=model.device)
    logits = torch.zeros(len(tokens), device=model.device)
    going = torch.ones(len(tokens), dtype=torch.bool, device=model.device)
    ends = torch.tensor(end_tokens(model), dtype=torch.long, device=model.device)
    cache = None

    def take(columns: list[int], activations: torch.Tensor) -> None:
        # Not multiplied by `going`: what follows the end of a text may be anything, NaN too.
        sums[:, columns] += torch.where(going[:, None], activations[:, -1].float(), 0).to(sums.device)

    with capturing(model, neurons, take):
        for _ in range(new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=place,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            best, ids = output.logits[:, -1:].max(-1)
            logits += torch.where(going, best[:, 0].float(), 0)
            num_tokens += going
            going &= ~torch.isin(ids[:, 0], ends)
            if not going.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            place = place[:, -1:] + 1
    return sums.cpu().numpy(), num_tokens.cpu().numpy(), logits.cpu().numpy()


def _check_numbers(
    sums: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    neurons: Sequence[Neuron],
    batch: list[int],
    num_texts: int,
) -> None:
    """
    Raises:
        InputError: activations are no numbers, or the tokens were chosen by logits that are none.
    """
    remedy = "the weights are damaged, or their numbers too large for model.dtype"
    broken = np.argwhere(~np.isfinite(sums))
    if len(broken):
        row, column = broken[0]
        raise InputError(
            f"the activation of neuron {list(neurons[column])} (layer, index) after text {batch[row] + 1} of "
            f"{num_texts} is {sums[row, column]}; {remedy}"
        )
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits)))
        raise InputError(f"the logits after text {batch[row] + 1} of {num_texts} are no numbers; {remedy}")
