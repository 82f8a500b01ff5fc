"""Fluency: the perplexity of completions given their prompts, under a causal or a sequence-to-sequence model.

causal
    ``exp(-mean log p(c_i | prompt, c_<i))`` over the completion's tokens.
seq2seq, ``corrected``
    The same, the encoder being given the prompt and the decoder writing the completion, without an end-of-text token
    (a completion is cut after a number of tokens, not ended).
seq2seq, ``released``
    What the paper's script computes: with ``L(x)`` the mean loss of text x when x is both the encoder's input and the
    decoder's target, and ``T(x)`` its tokens including the end of text,
    ``exp((L(full) (T(full) - 1) - L(prompt) (T(prompt) - 1)) / (T(full) - T(prompt)))``, full being prompt and
    completion in one string. The encoder sees what the decoder is asked for.

Apart from the last, prompt and completion are tokenized separately and their tokens joined, so that all completions
of a prompt share its tokens, and the prompt runs through the model once. An empty completion has no perplexity. Under
``released`` a blank one has none either, and values of 1e4 and more are dropped.

Run by workers only (it imports torch); see :mod:`xgray.experiment.stages.evaluate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.logging import disable_progress_bar

from xgray.config import Fluency, Model
from xgray.errors import InputError
from xgray.models.batches import by_length, padded, token_positions
from xgray.models.inference import inference
from xgray.models.load import load_causal_lm, load_tokenizer
from xgray.models.source import resolve

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

State = TypeVar("State")

RELEASED_LIMIT = 1e4
ANCHOR = "0"
"""Stands before a completion while it is tokenized, where the tokenizer would else put a word mark there."""


def load_measuring_model(model: Model, kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and its tokenizer, on CUDA where there is one.

    Raises:
        InputError: it is not there, or is not of this kind.
    """
    path = resolve(model)
    disable_progress_bar()
    try:
        if kind == "causal":
            loaded = load_causal_lm(path, model.dtype, model.revision)
        else:
            dtype = getattr(torch, model.dtype)
            loaded = AutoModelForSeq2SeqLM.from_pretrained(path, revision=model.revision, dtype=dtype).eval()
            loaded = loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        return loaded, load_tokenizer(path, model.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"evaluate.fluency.model: {model.id} is no {kind} model to be loaded: {reason}") from None


def perplexities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    section: Fluency,
    batch_size: int,
) -> list[list[float | None]]:
    """The perplexity of each completion, in the order given; None where it has none (see the module).

    Args:
        completions: for each prompt its completions, any number of them.
        batch_size: prompts, and completions, in one forward pass.

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
        losses = measure(model, tokenizer, prompts, completions, batch_size)
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


def causal_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_size: int,
) -> np.ndarray:
    """Mean negative log-likelihood of each completion given its prompt under a causal model, ``(num_completions,)``.

    A batch of prompts runs once, padded on the left; what it leaves in the cache is handed to the completions of
    these prompts. NaN for a completion without tokens.
    """

    def read(inputs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, Cache, torch.Tensor]:
        last = torch.zeros_like(mask, dtype=torch.bool)
        last[:, -1] = True
        with _head_at(model, last):
            output = model(input_ids=inputs, attention_mask=mask, position_ids=token_positions(mask), use_cache=True)
        return output.logits[0].float().log_softmax(-1), output.past_key_values, mask

    def losses(
        state: tuple[torch.Tensor, Cache, torch.Tensor], rows: torch.Tensor, targets: list[list[int]]
    ) -> torch.Tensor:
        first, cache, prompt_mask = state
        total = -first[rows, torch.tensor([tokens[0] for tokens in targets], device=model.device)]
        if max(map(len, targets)) == 1:
            return total
        inputs, valid = padded([tokens[:-1] for tokens in targets], model.device)
        labels, _ = padded([tokens[1:] for tokens in targets], model.device)
        mask = prompt_mask[rows]
        with _head_at(model, valid.bool()):
            logits = model(
                input_ids=inputs,
                attention_mask=torch.cat([mask, valid], dim=1),
                position_ids=mask.sum(-1, keepdim=True) + torch.arange(inputs.shape[1], device=model.device),
                past_key_values=_select(cache, rows),
                use_cache=True,
            ).logits
        return total + _sum_losses(logits, labels, valid)

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prompt_tokens = [tokens or [start] for tokens in _tokens(tokenizer, prompts)]
    targets = _continuation_tokens(tokenizer, list(chain.from_iterable(completions)))
    owners = [index for index, group in enumerate(completions) for _ in group]
    longest = max((len(prompt_tokens[owner]) + len(own) for owner, own in zip(owners, targets, strict=True)), default=0)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise InputError(
            f"a prompt with its completion has {longest} tokens, evaluate.fluency.model reads {limit}; "
            "take shorter prompts or another model"
        )
    return _mean_losses(prompt_tokens, owners, targets, batch_size, model.device, read, losses, pad_left=True)


def seq2seq_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_size: int,
) -> np.ndarray:
    """Mean negative log-likelihood of each completion, the encoder being given its prompt, ``(num_completions,)``.

    Each prompt is encoded once. NaN for a completion without tokens.
    """

    def read(inputs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state, mask

    def losses(state: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
        encoded, mask = state
        return _decoder_losses(model, encoded[rows], mask[rows], targets)

    prompt_tokens = _tokens(tokenizer, prompts)
    targets = _tokens(tokenizer, list(chain.from_iterable(completions)), special=False)
    owners = [index for index, group in enumerate(completions) for _ in group]
    return _mean_losses(prompt_tokens, owners, targets, batch_size, model.device, read, losses, pad_left=False)


def _mean_losses(
    prompt_tokens: list[list[int]],
    owners: list[int],
    targets: list[list[int]],
    batch_size: int,
    device: torch.device,
    read: Callable[[torch.Tensor, torch.Tensor], State],
    losses: Callable[[State, torch.Tensor, list[list[int]]], torch.Tensor],
    pad_left: bool,
) -> np.ndarray:
    """Read batches of prompts of similar length, then their completions in batches of similar length.

    Args:
        owners: index of each completion's prompt.
        read: tokens and mask of prompts, ``(batch, seq)``, to whatever their completions need of them.
        losses: that, the prompt's row for each completion, and the completions' tokens, to sums of losses.
    """
    samples_of: list[list[int]] = [[] for _ in prompt_tokens]
    for sample, owner in enumerate(owners):
        if targets[sample]:
            samples_of[owner].append(sample)
    means = np.full(len(targets), np.nan)
    for group in by_length(prompt_tokens, batch_size):
        state = read(*padded([prompt_tokens[index] for index in group], device, pad_left))
        row_of = {index: row for row, index in enumerate(group)}
        samples = [sample for index in group for sample in samples_of[index]]
        for batch in by_length([targets[sample] for sample in samples], batch_size):
            chosen = [samples[index] for index in batch]
            rows = torch.tensor([row_of[owners[sample]] for sample in chosen], device=device)
            tokens = [targets[sample] for sample in chosen]
            means[chosen] = losses(state, rows, tokens).double().cpu().numpy() / [len(own) for own in tokens]
    return means


def released_seq2seq_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    batch_size: int,
) -> np.ndarray:
    """The exponent of the paper's script for each completion, ``(num_completions,)`` (see the module).

    Every distinct text runs once: a prompt is not computed again for each of its completions. NaN where prompt and
    full text have the same loss and number of tokens.
    """
    pairs = [(prompt, prompt + text) for prompt, group in zip(prompts, completions, strict=True) for text in group]
    texts = list(dict.fromkeys(chain.from_iterable(pairs)))
    tokens = _tokens(tokenizer, texts)
    scaled = np.zeros(len(texts), dtype=np.float32)
    for batch in by_length(tokens, batch_size):
        chosen = [tokens[index] for index in batch]
        inputs, mask = padded(chosen, model.device)
        encoded = model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        total = _decoder_losses(model, encoded, mask, chosen).double().cpu().numpy()
        lengths = np.array([len(one) for one in chosen])
        scaled[batch] = total / lengths * (lengths - 1)
    index_of = {text: index for index, text in enumerate(texts)}
    prompt_of, full_of = (np.array([index_of[pair[side]] for pair in pairs], dtype=np.int64) for side in (0, 1))
    num_tokens = np.array([len(one) for one in tokens], dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (scaled[full_of] - scaled[prompt_of]) / (num_tokens[full_of] - num_tokens[prompt_of])


def _decoder_losses(
    model: PreTrainedModel, encoded: torch.Tensor, mask: torch.Tensor, targets: list[list[int]]
) -> torch.Tensor:
    labels, valid = padded(targets, model.device)
    with _head_at(model, valid.bool()):
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=mask,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
            use_cache=False,
        ).logits
    return _sum_losses(logits, labels, valid)


def _sum_losses(logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Sums of the losses of each row, ``(batch,)``, from the logits of the valid positions, ``(1, num_valid, vocab)``.

    In pieces that stay in the processor's cache, and in float32 whatever the model's precision.
    """
    rows, columns = valid.nonzero(as_tuple=True)
    wanted = labels[rows, columns]
    pieces = zip(logits[0].split(64), wanted.split(64), strict=True)
    losses = torch.cat([F.cross_entropy(part.float(), target, reduction="none") for part, target in pieces])
    return torch.zeros(len(labels), device=losses.device).index_add_(0, rows, losses)


@contextmanager
def _head_at(model: PreTrainedModel, where: torch.Tensor) -> Iterator[None]:
    """Within it the output head sees the chosen positions only: logits are ``(1, num_chosen, vocab)``.

    The head is a large share of a small model's work. Done by a hook on the head rather than by calling it, so that
    whatever a model does to its logits afterwards (scaling, capping) stays in place.
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: (inputs[0][where][None],))
    try:
        yield
    finally:
        hook.remove()


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []


def _continuation_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text as the continuation of another one, without special tokens.

    SentencePiece tokenizers such as Llama 2's put a word mark before any text, which the model would not write between
    a prompt and its continuation; with the anchor before it, a text keeps its own tokens. Where it melts into the
    anchor it is tokenized alone.
    """
    alone = _tokens(tokenizer, texts, special=False)
    if tokenizer.tokenize("a")[0] == "a":
        return alone
    [anchor] = _tokens(tokenizer, [ANCHOR], special=False)
    anchored = _tokens(tokenizer, [ANCHOR + text for text in texts], special=False)
    cut = len(anchor)
    return [long[cut:] if long[:cut] == anchor else short for long, short in zip(anchored, alone, strict=True)]


def _select(cache: Cache, rows: torch.Tensor) -> Cache:
    """A cache of the chosen rows, with repetition; the given one stays as it is."""
    selected = copy.copy(cache)
    selected.layers = [copy.copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected
