"""The mean activation of chosen neurons while a model continues a prompt greedily.

The activation that belongs to a generated token is the one at the position that predicts it: the prompt's last token
for the first generated token, then each generated token for the next one. So T generated tokens have T activations, and
the last generated token is never fed into the model. The paper's script takes the same positions. A continuation that
ends early counts up to and including its end-of-text token.

Under the protocol ``released``, as in the paper's script, a continuation goes on after its end-of-text token, and
models of the GPT-2 family read a beginning-of-text token before every prompt (:func:`released_prefix`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xgray.config import Neuron, Switch
from xgray.errors import InputError
from xgray.mechanism.neurons import capturing
from xgray.models.batches import by_length, padded, token_positions
from xgray.models.load import end_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def released_prefix(model_type: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that the paper's scripts put before every prompt, which is one token or nothing.

    They read prompts through TransformerLens, which puts the beginning-of-text token before them for GPT-2 and mGPT,
    the end-of-text token where the tokenizer has no other, and nothing for BLOOM and Qwen. The tokenizers of Llama,
    Gemma and Cohere put it there themselves, under either protocol.

    Args:
        model_type: of the model's configuration.
    """
    return str(tokenizer.bos_token or tokenizer.eos_token) if model_type == "gpt2" else ""


def measure_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    neurons: Sequence[Neuron],
    new_tokens: int,
    batch_size: int,
    *,
    protocol: Switch = "corrected",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Measure the mean activations of neurons over the greedy tokens after each text.

    Each text runs through the model once, and its continuation uses the cache. Only running sums of the activations
    are kept, in float32. Texts of similar length share a batch.

    Args:
        texts: each has at least one token, and fits the context; see :func:`xgray.models.load.check_lengths`.
        neurons: must exist in the model; see :func:`xgray.mechanism.neurons.check_neurons`.
        new_tokens: number of greedy tokens after each text, fewer where the continuation ends.
        batch_size: texts in one forward pass.
        protocol: how a prompt begins and where its continuation ends (see the module).

    Returns:
        The means, ``(num_texts, num_neurons)``, and the number of tokens of each mean, ``(num_texts,)``.

    Raises:
        InputError: a text has no tokens, or activations or logits are not finite.
    """
    from xgray.models.inference import inference

    is_released = protocol == "released"
    prefix = released_prefix(model.config.model_type, tokenizer) if is_released else ""
    tokens: list[list[int]] = tokenizer([prefix + text for text in texts])["input_ids"] if texts else []
    if [] in tokens:
        raise InputError(f"text {tokens.index([]) + 1} of {len(texts)} is empty: there is no token to continue from.")
    means = np.empty((len(texts), len(neurons)), dtype=np.float32)
    counts = np.empty(len(texts), dtype=np.int32)
    ends = [] if is_released else end_tokens(model.config, tokenizer)
    with inference():
        for batch in by_length(tokens, batch_size):
            sums, num_tokens, logits = _sums(model, [tokens[index] for index in batch], neurons, new_tokens, ends)
            _check_numbers(sums, logits, neurons, batch, len(texts))
            means[batch], counts[batch] = sums / num_tokens[:, None], num_tokens
    return means, counts


def _sums(
    model: PreTrainedModel,
    tokens: list[list[int]],
    neurons: Sequence[Neuron],
    new_tokens: int,
    ends: Sequence[int],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Continue one batch of texts greedily.

    Args:
        ends: ids of the tokens that end a continuation.

    Returns:
        The sums of the activations over tokens, ``(batch, num_neurons)``; the number of tokens, ``(batch,)``; and the
        sum of the chosen tokens' logits, ``(batch,)``, which is not finite if any of them is not.
    """
    import torch

    ids, mask = padded(tokens, model.device, left=True)
    positions = token_positions(mask)
    sums = torch.zeros(len(tokens), len(neurons), device=model.device)
    num_tokens = torch.zeros(len(tokens), dtype=torch.int32, device=model.device)
    logits = torch.zeros(len(tokens), device=model.device)
    is_running = torch.ones(len(tokens), dtype=torch.bool, device=model.device)
    end_ids = torch.tensor(ends, dtype=torch.long, device=model.device)
    cache = None

    def take(columns: list[int], activations: torch.Tensor) -> None:
        # `where` rather than a product with `is_running`: activations after the end of a text may be NaN.
        sums[:, columns] += torch.where(is_running[:, None], activations[:, -1].float(), 0).to(sums.device)

    with capturing(model, neurons, take):
        for _ in range(new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            best, ids = output.logits[:, -1:].max(-1)
            logits += torch.where(is_running, best[:, 0].float(), 0)
            num_tokens += is_running
            is_running &= ~torch.isin(ids[:, 0], end_ids)
            if not is_running.any():
                break
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
    return sums.cpu().numpy(), num_tokens.cpu().numpy(), logits.cpu().numpy()


def _check_numbers(
    sums: npt.NDArray[np.float32],
    logits: npt.NDArray[np.float32],
    neurons: Sequence[Neuron],
    batch: list[int],
    num_texts: int,
) -> None:
    """Check that activations and logits are finite.

    Args:
        sums: of activations, ``(batch, num_neurons)``.
        logits: summed over tokens, ``(batch,)``.
        batch: the position of each row's text among all ``num_texts``.

    Raises:
        InputError: a sum is not finite.
    """
    cause = "The weights are damaged or too large for the section's dtype. Try dtype: float32."
    broken = np.argwhere(~np.isfinite(sums))
    if len(broken):
        row, column = broken[0]
        raise InputError(
            f"the activation of neuron {list(neurons[column])} (layer, index) after text {batch[row] + 1} of "
            f"{num_texts} is {sums[row, column]}. {cause}"
        )
    if not np.isfinite(logits).all():
        row = int(np.argmin(np.isfinite(logits)))
        raise InputError(f"the logits after text {batch[row] + 1} of {num_texts} are not finite. {cause}")
