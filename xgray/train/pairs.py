"""Prepare preference pairs: tokenize them as TRL does, filter them by length and hold some out for validation.

A prompt and its completion are tokenized together (``prompt + chosen + eos``), because a tokenizer may merge characters
across the boundary. The completions begin where the tokens of the prompt, of the text with the chosen completion and of
the text with the rejected completion first differ.

Pairs of messages are rendered with the model's chat template (:func:`_rendered`).

Under ``train.tokenization: released`` pairs are tokenized and truncated as TRL 0.8.6 does it, the paper's trainer
(:func:`_released_pair`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from xgray.config import Train
from xgray.config.train import REFERENCE_FREE
from xgray.errors import InputError
from xgray.rows import ChatPair, Message, Pairs, PreferencePair
from xgray.storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

WITHOUT_TEMPLATE = "Set train.chat_template: false to train on the contents of the messages alone"


@dataclass(frozen=True)
class TokenizedPair:
    """The token ids of a preference pair."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    """The chosen completion with its end-of-text token, without the prompt."""
    rejected_ids: list[int]
    """The rejected completion, likewise."""
    chosen_uncounted: int = 0
    """The first tokens of ``chosen_ids`` that belong to the prompt: the loss does not count them. They are not in
    ``prompt_ids`` where the prompt has other tokens before the rejected completion."""
    rejected_uncounted: int = 0
    """Those of ``rejected_ids``."""

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    def key(self, context: dict[str, Any]) -> str:
        """Return the SHA-256 of the pair's tokens and of ``context``, which holds all else that a value depends on."""
        uncounted = [self.chosen_uncounted, self.rejected_uncounted]
        pair = [self.prompt_ids, self.chosen_ids, self.rejected_ids, *(uncounted if any(uncounted) else [])]
        return fingerprint({**context, "pair": pair})


@dataclass(frozen=True)
class PreparedPairs:
    """The pairs of a training, and how many were changed or dropped."""

    train: list[TokenizedPair]
    validation: list[TokenizedPair]
    num_pairs: int
    """Pairs before the length filter."""
    num_truncated: int
    """Pairs kept that lost tokens: of their prompt, or under ``tokenization: released`` also of a completion."""

    @property
    def num_dropped(self) -> int:
        """Return the number of pairs longer than ``max_length``."""
        return self.num_pairs - len(self.train) - len(self.validation)


@dataclass(frozen=True)
class _Texts:
    """What is tokenized of a pair."""

    prompt: str
    chosen: str
    """The prompt with the chosen completion."""
    rejected: str
    is_complete: bool
    """Whether the chat template has set all special tokens, so that none are added."""


def prepare_pairs(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, section: Train, seed: int) -> PreparedPairs:
    """Render, tokenize, truncate, filter and split the pairs.

    A prompt over ``max_prompt_length`` keeps its last tokens, and the beginning-of-text token where the tokenizer sets
    one; ``tokenization: released`` cuts as TRL 0.8.6. Then ``length_filter: corrected`` drops pairs of more than
    ``max_length`` tokens, and ``released`` drops pairs whose text before truncation has more than ``max_length``
    characters. ``seed`` decides which pairs are held out; they are whole batches, see :func:`num_held_out`.

    Raises:
        InputError: fewer pairs are left than a batch of training and the held-out pairs need,
            ``tokenization: released`` leaves no room for completions, or the pairs are messages that the tokenizer has
            no template for, or does not take.
    """
    kept, num_truncated = [], 0
    rendered = [_rendered(pair, tokenizer, section) for pair in pairs]
    for texts, (cut, is_truncated) in zip(rendered, _tokenized(rendered, tokenizer, section), strict=True):
        characters = max(len(texts.chosen), len(texts.rejected))
        length = cut.num_tokens if section.length_filter == "corrected" else characters
        if length <= section.max_length:
            kept.append(cut)
            num_truncated += is_truncated
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


def mismatched_pairs(pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    """Return each pair's prompt with the completions of the next pair, which KTO estimates a divergence from."""
    others = [*pairs[1:], *pairs[:1]]
    return [replace(other, prompt_ids=pair.prompt_ids) for pair, other in zip(pairs, others, strict=True)]


def reference_pairs(prepared: PreparedPairs, section: Train) -> list[TokenizedPair]:
    """Return the pairs that a training needs the reference's log-probabilities of."""
    if section.loss in REFERENCE_FREE:
        return []
    pairs = [*prepared.train, *prepared.validation]
    if section.loss == "kto":
        pairs += [*mismatched_pairs(prepared.train), *mismatched_pairs(prepared.validation)]
    return pairs


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


def _rendered(pair: PreferencePair | ChatPair, tokenizer: PreTrainedTokenizerBase, section: Train) -> _Texts:
    """Return the texts of a pair, those of messages by the chat template, as TRL 1.16 renders them.

    The prompt ends where the assistant's answer begins (the template's generation prompt). The end of an answer is what
    the template sets there; no end-of-text token is added.
    """
    if isinstance(pair, ChatPair):
        if section.chat_template:
            return _by_template(pair, tokenizer, section)
        pair = pair.as_text()
    return _Texts(pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected, is_complete=False)


def check_chat_template(tokenizer: PreTrainedTokenizerBase, section: Train) -> None:
    """Check that a training can render pairs of messages.

    Raises:
        InputError: the tokenizer has no chat template, or ``tokenization: released`` knows none.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"train.pairs: {section.pairs} holds messages, and the model's tokenizer has no chat template. "
            f"{WITHOUT_TEMPLATE}, or choose a model that was tuned to chat"
        )
    if section.tokenization == "released":
        raise InputError(
            f"train.tokenization: released knows no chat template, and {section.pairs} holds messages. "
            f"{WITHOUT_TEMPLATE}"
        )


def _by_template(pair: ChatPair, tokenizer: PreTrainedTokenizerBase, section: Train) -> _Texts:
    from jinja2 import TemplateError

    check_chat_template(tokenizer, section)

    def render(messages: Sequence[Message], is_prompt: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                [message._asdict() for message in messages], tokenize=False, add_generation_prompt=is_prompt
            )
        )

    try:
        return _Texts(
            render(pair.prompt, is_prompt=True),
            render(pair.prompt + pair.chosen),
            render(pair.prompt + pair.rejected),
            is_complete=True,
        )
    except TemplateError as error:  # Gemma's template, for one, refuses the role system
        roles = ", ".join(message.role for message in pair.prompt + pair.chosen)
        raise InputError(
            f"train.pairs: the model's chat template refuses messages with the roles {roles}: {error}. "
            f"{WITHOUT_TEMPLATE}"
        ) from None


def _tokenized(
    pairs: Sequence[_Texts], tokenizer: PreTrainedTokenizerBase, section: Train
) -> list[tuple[TokenizedPair, bool]]:
    """Return the tokens of each pair after truncation, and whether any were cut."""
    if section.tokenization == "released":
        return _tokenize_as_released(pairs, tokenizer, section)
    whole = _tokenize(pairs, tokenizer)
    cut = [_truncate_prompt(pair, section.max_prompt_length, tokenizer.bos_token_id) for pair in whole]
    return [(short, len(short.prompt_ids) < len(long.prompt_ids)) for short, long in zip(cut, whole, strict=True)]


def _tokenize(pairs: Sequence[_Texts], tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    if not pairs:
        return []
    is_complete = pairs[0].is_complete
    end = "" if is_complete else str(tokenizer.eos_token)
    options = {"add_special_tokens": False} if is_complete else {}

    def ids_of(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
        return ids

    prompts = ids_of([pair.prompt for pair in pairs])
    chosen = ids_of([_end_with(pair.chosen, end) for pair in pairs])
    rejected = ids_of([_end_with(pair.rejected, end) for pair in pairs])
    tokenized, num_other_prompts = [], 0
    for prompt_ids, chosen_ids, rejected_ids in zip(prompts, chosen, rejected, strict=True):
        together = zip(prompt_ids, chosen_ids, rejected_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1] == ids[2], together))
        tokenized.append(TokenizedPair(prompt_ids[:shared], chosen_ids[shared:], rejected_ids[shared:]))
        num_other_prompts += shared < len(prompt_ids)
    if is_complete and num_other_prompts:
        log.warning(
            "train.pairs: the chat template renders %d of %d prompts in another way before an answer than alone; what "
            "differs is left out of the prompt, which the model sees when it is used",
            num_other_prompts,
            len(pairs),
        )
    return tokenized


def _end_with(text: str, end: str) -> str:
    return text if text.endswith(end) else text + end


def _truncate_prompt(pair: TokenizedPair, max_tokens: int, bos: int | None) -> TokenizedPair:
    prompt = pair.prompt_ids
    if len(prompt) <= max_tokens:
        return pair
    begin = prompt[:1] if bos is not None and prompt[0] == bos and max_tokens > 1 else []
    return TokenizedPair(begin + prompt[len(prompt) - max_tokens + len(begin) :], pair.chosen_ids, pair.rejected_ids)


@dataclass(frozen=True)
class _Side:
    """One completion of a pair with its prompt, as TRL 0.8.6 holds them."""

    prompt: list[int]
    completion: list[int]


def _tokenize_as_released(
    pairs: Sequence[_Texts], tokenizer: PreTrainedTokenizerBase, section: Train
) -> list[tuple[TokenizedPair, bool]]:
    if section.max_length <= section.max_prompt_length:
        raise InputError(
            "train.tokenization: released cuts a completion to max_length - max_prompt_length tokens, which is "
            f"{section.max_length} - {section.max_prompt_length}. Set train.max_length above train.max_prompt_length."
        )

    def ids_of(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return ids

    columns = (
        ids_of([pair.prompt for pair in pairs]),
        ids_of([pair.chosen for pair in pairs]),
        ids_of([pair.rejected for pair in pairs]),
    )
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [_released_pair(*row, *tokens, section) for row in zip(*columns, strict=True)]


def _released_pair(
    prompt: list[int], chosen: list[int], rejected: list[int], bos: int | None, eos: int, section: Train
) -> tuple[TokenizedPair, bool]:
    """Return a pair as TRL 0.8.6 tokenizes it with ``truncation_mode="keep_end"``, and whether tokens were cut.

    Nothing is cut unless the prompt and the longer completion exceed ``max_length``. Then the prompt keeps its last
    ``max_prompt_length`` tokens, which may leave out the beginning-of-text token, and a completion that is still too
    long keeps its first ``max_length - max_prompt_length`` tokens. Both are decided for each side of the pair by
    itself.

    Args:
        prompt: tokens of the prompt without special tokens.
        chosen: tokens of the prompt and the chosen completion, tokenized together, without special tokens.
        rejected: those of the prompt and the rejected completion.
    """
    sides = [_released_side(prompt, whole, bos, eos) for whole in (chosen, rejected)]
    longest = max(len(side.completion) for side in sides)
    cut = []
    for side in sides:
        tokens, completion = side.prompt, side.completion
        if len(tokens) + longest > section.max_length:
            tokens = tokens[-section.max_prompt_length :]
        if len(tokens) + longest > section.max_length:
            completion = completion[: section.max_length - section.max_prompt_length]
        cut.append(_Side(tokens, completion))
    first, second = cut
    together = zip(first.prompt, second.prompt, strict=False)
    num_shared = sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], together))
    pair = TokenizedPair(
        first.prompt[:num_shared],
        first.prompt[num_shared:] + first.completion,
        second.prompt[num_shared:] + second.completion,
        len(first.prompt) - num_shared,
        len(second.prompt) - num_shared,
    )
    return pair, cut != sides


def _released_side(prompt: list[int], whole: list[int], bos: int | None, eos: int) -> _Side:
    """Split a prompt and a completion that were tokenized together; a merged last token goes to the completion."""
    start = len(prompt)
    if whole[:start] != prompt:
        start -= 1
    prompt, completion = whole[:start], whole[start:]
    begin = [bos] if bos is not None and prompt[:1] != [bos] else []
    end = [] if completion[-1:] == [eos] else [eos]
    return _Side([*begin, *prompt], [*completion, *end])
