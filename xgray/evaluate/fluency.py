"""Fluency: the perplexity of completions given their prompts, under a causal or a sequence-to-sequence model.

causal
    ``exp(-mean_i log p(c_i | prompt, c_<i))`` over the completion's tokens ``c_i``.
seq2seq, ``corrected``
    The same formula: the encoder reads the prompt and the decoder predicts the completion, without an end-of-text
    token, because completions are cut off after a number of tokens rather than ended.
seq2seq, ``released``
    What the paper's script computes: let ``L(x)`` be the mean loss of text x when x is both the encoder's input and
    the decoder's target, ``T(x)`` the number of its tokens with the end-of-text token, and ``full`` the prompt and the
    completion as one string. The perplexity is
    ``exp((L(full) (T(full) - 1) - L(prompt) (T(prompt) - 1)) / (T(full) - T(prompt)))``.
    The encoder thus sees the text that the decoder is to predict.

Except in the last case, prompt and completion are tokenized separately and their tokens are joined, so that all
completions of a prompt share its tokens, and the prompt runs through the model only once. An empty completion has no
perplexity. Under ``released`` a blank completion has none either, and values of 1e4 and above are dropped.

Only workers import this module, because it imports torch; see :mod:`xgray.experiment.stages.evaluate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutput

from xgray.config import Fluency, Model
from xgray.errors import InputError
from xgray.models.batches import by_tokens, padded, token_positions
from xgray.models.heap import keep_freed_memory
from xgray.models.inference import inference
from xgray.models.load import load_causal_lm, load_seq2seq, load_tokenizer
from xgray.models.source import resolve
from xgray.stats.bootstrap import FloatArray

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

State = TypeVar("State")

RELEASED_LIMIT = 1e4
"""Perplexities from here on are dropped under the protocol ``released``."""
ANCHOR = "0"
"""Put before a completion while it is tokenized, so that the tokenizer adds no word mark to the completion."""


def load_measuring_model(model: Model, kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model that measures perplexity, on CUDA if there is a GPU, and its tokenizer.

    Args:
        kind: ``causal`` or ``seq2seq``.

    Raises:
        InputError: the model cannot be found, or is of another kind.
    """
    path = resolve(model)
    if not torch.cuda.is_available():
        keep_freed_memory()
    load = load_causal_lm if kind == "causal" else load_seq2seq
    try:
        return load(path, model.dtype, model.revision), load_tokenizer(path, model.revision)
    except (OSError, ValueError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"evaluate.fluency.model: cannot load {model.id} as a {kind} model: {reason}") from None


def perplexities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    section: Fluency,
    batch_tokens: int,
) -> list[list[float | None]]:
    """Compute the perplexity of each completion given its prompt.

    Args:
        completions: for each prompt its completions, any number of them.
        section: the kind of ``model`` and the protocol, which together say which formula applies (see the module).
        batch_tokens: tokens in one forward pass, padding included: those of a completion and of its prompt.

    Returns:
        For each prompt the perplexities of its completions, in their order; None for a completion that has none.

    Raises:
        InputError: a prompt with its completion is longer than the model's context.
    """
    measure = {
        ("causal", "corrected"): causal_losses,
        ("causal", "released"): causal_losses,
        ("seq2seq", "corrected"): seq2seq_losses,
        ("seq2seq", "released"): released_seq2seq_losses,
    }[section.kind, section.protocol]
    with inference():
        losses = measure(model, tokenizer, prompts, completions, batch_tokens)
    texts = list(chain.from_iterable(completions))
    with np.errstate(over="ignore"):
        values: list[float | None] = [None if np.isnan(loss) else float(np.exp(loss)) for loss in losses]
    if section.protocol == "released":
        values = [
            None if value is None or value >= RELEASED_LIMIT or not text.strip() else value
            for value, text in zip(values, texts, strict=True)
        ]
    remaining = iter(values)
    return [[next(remaining) for _ in group] for group in completions]


@dataclass(frozen=True)
class _Samples:
    """Tokenized prompts and completions."""

    prompts: list[list[int]]
    completions: list[list[int]]
    """The completions of all prompts, one prompt after the other."""
    prompt_of: list[int]
    """Index of each completion's prompt."""


def _samples(prompts: list[list[int]], completions: list[list[int]], groups: Sequence[Sequence[str]]) -> _Samples:
    return _Samples(prompts, completions, [index for index, group in enumerate(groups) for _ in group])


def causal_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_tokens: int,
) -> FloatArray:
    """Compute the mean negative log-likelihood of each completion's tokens given its prompt, under a causal model.

    Each batch of prompts, padded on the left, runs through the model once; its cache then serves all completions of
    these prompts.

    Args:
        completions: for each prompt its completions.
        batch_tokens: tokens in one forward pass, padding included: those of a completion and of its prompt.

    Returns:
        Losses in nats per token, ``(num_completions,)``; NaN for a completion without tokens.

    Raises:
        InputError: a prompt with its completion is longer than the model's context.
    """

    def read(batch: list[list[int]]) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        inputs, mask = padded(batch, model.device, left=True)
        is_last = torch.zeros_like(mask, dtype=torch.bool)
        is_last[:, -1] = True
        with _head_only_at(model, is_last):
            output = model(input_ids=inputs, attention_mask=mask, position_ids=token_positions(mask), use_cache=True)
        return output.logits[0].float().log_softmax(-1), output.past_key_values, mask

    def total_losses(
        state: tuple[torch.Tensor, Cache, torch.Tensor], rows: torch.Tensor, targets: list[list[int]]
    ) -> torch.Tensor:
        first_log_probs, cache, prompt_mask = state
        # The prompt's last position predicts the first token; the completion's own positions predict the others.
        total = -first_log_probs[rows, torch.tensor([tokens[0] for tokens in targets], device=model.device)]
        if max(map(len, targets)) == 1:
            return total
        inputs, is_valid = padded([tokens[:-1] for tokens in targets], model.device)
        labels, _ = padded([tokens[1:] for tokens in targets], model.device)
        mask = prompt_mask[rows]
        with _head_only_at(model, is_valid.bool()):
            logits = model(
                input_ids=inputs,
                attention_mask=torch.cat([mask, is_valid], dim=1),
                position_ids=mask.sum(-1, keepdim=True) + torch.arange(inputs.shape[1], device=model.device),
                past_key_values=_select(cache, rows),
                use_cache=True,
            ).logits
        return total + _sum_losses(logits, labels, is_valid)

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    samples = _samples(
        [tokens or [start] for tokens in _tokens(tokenizer, prompts)],
        _continuation_tokens(tokenizer, list(chain.from_iterable(completions))),
        completions,
    )
    _check_context(model, samples)
    return _mean_losses(samples, batch_tokens, model.device, read, total_losses)


def _check_context(model: PreTrainedModel, samples: _Samples) -> None:
    """Raise an InputError if a prompt with its completion is longer than the model's context."""
    pairs = zip(samples.prompt_of, samples.completions, strict=True)
    longest = max((len(samples.prompts[prompt]) + len(completion) for prompt, completion in pairs), default=0)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError(
            f"a prompt with its completion has {longest} tokens, but evaluate.fluency.model reads {limit}. "
            "Take shorter prompts or another model."
        )


def seq2seq_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_tokens: int,
) -> FloatArray:
    """Compute the mean negative log-likelihood of each completion's tokens, the encoder reading its prompt.

    Each prompt is encoded once.

    Args:
        completions: for each prompt its completions.
        batch_tokens: tokens in one forward pass, padding included: those of a completion and of its prompt.

    Returns:
        Losses in nats per token, ``(num_completions,)``; NaN for a completion without tokens.
    """

    def read(batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, mask = padded(batch, model.device)
        return model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state, mask

    def total_losses(
        state: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, targets: list[list[int]]
    ) -> torch.Tensor:
        encoded, mask = state
        return _decoder_losses(model, encoded[rows], mask[rows], targets)

    targets = _tokens(tokenizer, list(chain.from_iterable(completions)), special=False)
    samples = _samples(_tokens(tokenizer, prompts), targets, completions)
    return _mean_losses(samples, batch_tokens, model.device, read, total_losses)


def _mean_losses(
    samples: _Samples,
    batch_tokens: int,
    device: torch.device,
    read: Callable[[list[list[int]]], State],
    total_losses: Callable[[State, torch.Tensor, list[list[int]]], torch.Tensor],
) -> FloatArray:
    """Run batches of prompts of similar length, then their completions in batches of similar length.

    Args:
        batch_tokens: tokens in one forward pass; with a completion those of the longest prompt of the batch count too,
            because its row has as much of the state.
        read: makes, from the tokens of a batch of prompts, the state that their completions need.
        total_losses: returns the sum of each completion's losses, ``(batch,)``, from that state, each completion's row
            in it, ``(batch,)``, and the completions' tokens.

    Returns:
        Mean losses, ``(num_completions,)``; NaN for a completion without tokens.
    """
    completions_of: list[list[int]] = [[] for _ in samples.prompts]
    for index, prompt in enumerate(samples.prompt_of):
        if samples.completions[index]:
            completions_of[prompt].append(index)
    means = np.full(len(samples.completions), np.nan)
    for prompt_batch in by_tokens([len(tokens) for tokens in samples.prompts], batch_tokens):
        state = read([samples.prompts[prompt] for prompt in prompt_batch])
        row_of = {prompt: row for row, prompt in enumerate(prompt_batch)}
        indices = [index for prompt in prompt_batch for index in completions_of[prompt]]
        longest = max(len(samples.prompts[prompt]) for prompt in prompt_batch)
        for batch in by_tokens([longest + len(samples.completions[index]) for index in indices], batch_tokens):
            chosen = [indices[position] for position in batch]
            rows = torch.tensor([row_of[samples.prompt_of[index]] for index in chosen], device=device)
            targets = [samples.completions[index] for index in chosen]
            lengths = [len(tokens) for tokens in targets]
            means[chosen] = total_losses(state, rows, targets).double().cpu().numpy() / lengths
    return means


def released_seq2seq_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_tokens: int,
) -> FloatArray:
    """Compute the logarithm of the released script's perplexity of each completion (see the module).

    Every distinct text runs through the model once, so a prompt is not computed again for each of its completions.

    Args:
        completions: for each prompt its completions.
        batch_tokens: tokens in one forward pass, padding included: the encoder's and the decoder's.

    Returns:
        ``(num_completions,)``; NaN where prompt and full text have the same loss and the same number of tokens.
    """
    pairs = [(prompt, prompt + text) for prompt, group in zip(prompts, completions, strict=True) for text in group]
    texts = list(dict.fromkeys(chain.from_iterable(pairs)))
    tokens = _tokens(tokenizer, texts)
    scaled = np.zeros(len(texts), dtype=np.float32)
    for batch in by_tokens([2 * len(ids) for ids in tokens], batch_tokens):
        chosen = [tokens[index] for index in batch]
        inputs, mask = padded(chosen, model.device)
        encoded = model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        total = _decoder_losses(model, encoded, mask, chosen).double().cpu().numpy()
        lengths = np.array([len(ids) for ids in chosen])
        scaled[batch] = total / lengths * (lengths - 1)
    index_of = {text: index for index, text in enumerate(texts)}
    prompt_of, full_of = (np.array([index_of[pair[side]] for pair in pairs], dtype=np.int64) for side in (0, 1))
    num_tokens = np.array([len(ids) for ids in tokens], dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (scaled[full_of] - scaled[prompt_of]) / (num_tokens[full_of] - num_tokens[prompt_of])


def _decoder_losses(
    model: PreTrainedModel, encoded: torch.Tensor, mask: torch.Tensor, targets: list[list[int]]
) -> torch.Tensor:
    """Return the sum of the decoder's losses on each target, ``(batch,)``.

    Args:
        encoded: the encoder's output, ``(batch, seq, d_model)``.
        mask: 1 for the encoder's tokens, 0 for padding, ``(batch, seq)``.
        targets: tokens that the decoder is to predict.
    """
    labels, is_valid = padded(targets, model.device)
    with _head_only_at(model, is_valid.bool()):
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
            use_cache=False,
        ).logits
    return _sum_losses(logits, labels, is_valid)


def _sum_losses(logits: torch.Tensor, labels: torch.Tensor, is_valid: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row's losses, ``(batch,)``, computed in float32 whatever the model's precision.

    Args:
        logits: of the valid positions, ``(1, num_valid, vocab)``.
        labels: ``(batch, seq)``.
        is_valid: 1 for tokens, 0 for padding, ``(batch, seq)``.
    """
    rows, columns = is_valid.nonzero(as_tuple=True)
    targets = labels[rows, columns]
    # Pieces of 64 positions stay in the processor's cache.
    pieces = zip(logits[0].split(64), targets.split(64), strict=True)
    losses = torch.cat([F.cross_entropy(part.float(), target, reduction="none") for part, target in pieces])
    return torch.zeros(len(labels), device=losses.device).index_add_(0, rows, losses)


@contextmanager
def _head_only_at(model: PreTrainedModel, chosen: torch.Tensor) -> Iterator[None]:
    """Let the output head compute logits at the chosen positions only: they become ``(1, num_chosen, vocab)``.

    The head is a large share of a small model's work. A hook does this, rather than a direct call of the head, so that
    whatever the model does to its logits afterwards (scaling, capping) still happens.

    Args:
        chosen: boolean mask over positions, ``(batch, seq)``.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0][chosen][None],))
    try:
        yield
    finally:
        hook.remove()


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Return the token ids of each text, with special tokens unless ``special`` is false."""
    return tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []


def _continuation_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text as the continuation of another text, without special tokens.

    SentencePiece tokenizers such as Llama 2's put a word mark before any text, which the model would not write between
    a prompt and its continuation. With the anchor in front, the word mark goes to the anchor, whose tokens are then cut
    off. A text whose first token merges with the anchor is tokenized alone.
    """
    alone = _tokens(tokenizer, texts, special=False)
    if tokenizer.tokenize("a")[0] == "a":
        return alone
    [anchor] = _tokens(tokenizer, [ANCHOR], special=False)
    anchored = _tokens(tokenizer, [ANCHOR + text for text in texts], special=False)
    cut = len(anchor)
    return [long[cut:] if long[:cut] == anchor else short for long, short in zip(anchored, alone, strict=True)]


def _select(cache: Cache, rows: torch.Tensor) -> Cache:
    """Return a new cache with the chosen rows of ``cache``, which may repeat; ``cache`` stays unchanged."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected
