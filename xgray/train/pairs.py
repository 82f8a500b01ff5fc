"""Prepare preference pairs: tokenize them as TRL does, filter them by length and hold some out for validation.

A prompt and its completion are tokenized together (``prompt + chosen + eos``), because a tokenizer may merge characters
across the boundary. The completions begin where the tokens of the prompt, of the text with the chosen completion and of
the text with the rejected completion first differ.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from xgray.config import Train
from xgray.errors import InputError
from xgray.rows import PreferencePair
from xgray.storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedPair:
    """The token ids of a preference pair."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    """The chosen completion with its end-of-text token, without the prompt."""
    rejected_ids: list[int]
    """The rejected completion, likewise."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def key(self, context: dict[str, Any]) -> str:
        """Return the SHA-256 of the pair's tokens and of ``context``, which holds all else that a value depends on."""
        return fingerprint({**context, "pair": [self.prompt_ids, self.chosen_ids, self.rejected_ids]})


@dataclass(frozen=True)
class PreparedPairs:
    """The pairs of a training, and how many were changed or dropped."""

    train: list[TokenizedPair]
    validation: list[TokenizedPair]
    num_pairs: int
    """Pairs before the length filter."""
    num_truncated: int
    """Pairs kept whose prompt was truncated."""

    @property
    def num_dropped(self) -> int:
        """Return the number of pairs longer than ``max_length``."""
        return self.num_pairs - len(self.train) - len(self.validation)


def prepare_pairs(
    pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, section: Train, seed: int
) -> PreparedPairs:
    """Tokenize, truncate, filter and split the pairs.

    A prompt over ``max_prompt_length`` keeps its last tokens, and the beginning-of-text token where the tokenizer sets
    one. Then ``length_filter: corrected`` drops pairs of more than ``max_length`` tokens, and ``released`` drops pairs
    whose text before truncation has more than ``max_length`` characters. ``seed`` decides which pairs are held out;
    they are whole batches, see :func:`num_held_out`.

    Raises:
        InputError: fewer pairs are left than a batch of training and the held-out pairs need.
    """
    kept, num_truncated = [], 0
    for pair, whole in zip(pairs, _tokenize(pairs, tokenizer), strict=True):
        cut = _truncate_prompt(whole, section.max_prompt_length, tokenizer.bos_token_id)
        characters = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        length = cut.num_tokens if section.length_filter == "corrected" else characters
        if length <= section.max_length:
            kept.append(cut)
            num_truncated += len(cut.prompt_ids) < len(whole.prompt_ids)
    num_validation = num_held_out(section, len(kept))
    if len(kept) < section.batch_size + num_validation:
        raise InputError(
            f"train.pairs: {len(pairs)} pairs, of which {len(kept)} are no longer than train.max_length "
            f"{section.max_length}: too few for a batch of {section.batch_size} and to hold out {num_validation}"
        )
    order = list(range(len(kept)))
    random.Random(seed).shuffle(order)
    held_out = set(order[:num_validation])
    return PreparedPairs(
        train=[pair for index, pair in enumerate(kept) if index not in held_out],
        validation=[kept[index] for index in sorted(held_out)],
        num_pairs=len(pairs),
        num_truncated=num_truncated,
    )


def validation_batch(section: Train) -> int:
    """Return the number of held-out pairs in one forward pass of all workers: whole batches, at least eight pairs."""
    return section.batch_size * -(-8 // section.batch_size)


def num_held_out(section: Train, num_pairs: int) -> int:
    """Return the number of pairs to hold out of ``num_pairs``: ``validation_share`` of them, in whole forward passes.

    With whole passes no number of workers has to repeat pairs to fill one.
    """
    if not section.validation_share:
        return 0
    share = section.validation_share * num_pairs
    unit = validation_batch(section) if share >= validation_batch(section) else section.batch_size
    return unit * max(1, round(share / unit))


def _tokenize(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    if not pairs:
        return []
    end = str(tokenizer.eos_token)
    prompts: list[list[int]] = tokenizer([pair.prompt for pair in pairs])["input_ids"]
    chosen: list[list[int]] = tokenizer([pair.prompt + _end_with(pair.chosen, end) for pair in pairs])["input_ids"]
    rejected: list[list[int]] = tokenizer([pair.prompt + _end_with(pair.rejected, end) for pair in pairs])["input_ids"]
    tokenized = []
    for prompt_ids, chosen_ids, rejected_ids in zip(prompts, chosen, rejected, strict=True):
        together = zip(prompt_ids, chosen_ids, rejected_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1] == ids[2], together))
        tokenized.append(TokenizedPair(prompt_ids[:shared], chosen_ids[shared:], rejected_ids[shared:]))
    return tokenized


def _end_with(completion: str, end: str) -> str:
    return completion if completion.endswith(end) else completion + end


def _truncate_prompt(pair: TokenizedPair, max_tokens: int, bos: int | None) -> TokenizedPair:
    prompt = pair.prompt_ids
    if len(prompt) <= max_tokens:
        return pair
    begin = prompt[:1] if bos is not None and prompt[0] == bos and max_tokens > 1 else []
    return TokenizedPair(begin + prompt[len(prompt) - max_tokens + len(begin) :], pair.chosen_ids, pair.rejected_ids)
