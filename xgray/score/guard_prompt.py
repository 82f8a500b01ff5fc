"""What a generative safety model reads: its prompt around a text, up to the token that decides.

    template ─▶ chat template ─▶ head ▏ text ▏ tail ▏ answer_prefix ▏ answer
                                 └──────────── token ids ─────────┘   └ one token of each answer

The prompt is tokenized as a whole, as the model's card does it. Spellings of special tokens in a text, such as
``<|im_end|>``, are broken by a zero-width space: a text cannot end its message and answer for the model. White space at
a text's ends is left out, as many chat templates do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgray.config import Guard
from xgray.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "{text}"
"""Stands in ``score.guard.template`` for the text."""
MARK = "\ue000"
"""Stands for the text while the chat template is applied: a character that no template holds."""
ZERO_WIDTH_SPACE = "\u200b"
PROBES = ("a", "Word", "7", "(", "-", "中", "اب")
"""Texts that begin differently: the token ids that their prompts share are those that all prompts share."""
MAX_TEXT_TOKENS = 2048
"""The greatest length of a text in tokens, where the model's context allows as much."""


class GuardPrompt:
    """Turns texts into the token ids that stand before a model's answer."""

    def __init__(
        self, options: Guard, answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int
    ) -> None:
        """Apply the chat template once, and find the token of each answer.

        Args:
            options: the section ``score.guard``.
            answers: the answers of all labels, at least two.
            tokenizer: the model's tokenizer.
            context: tokens in the longest sequence that the model reads.

        Raises:
            InputError: the template lacks the text or is too long, the tokenizer has no chat template, or an answer is
                not a single token.
        """
        self._tokenizer = tokenizer
        self._adds_special_tokens = not options.chat  # a chat template holds those that the model needs
        self.head, self.tail = _head_and_tail(options, tokenizer)
        self._answer = answers[0]
        self.tokens = self._answer_tokens(answers)
        """The token id of each answer, in the order of ``answers``."""
        self._special = _special_tokens(tokenizer)
        num_own = len(self._ids(""))
        if num_own + 2 > context:  # one for a text, one for the answer
            raise InputError(
                f"score.guard.template: the prompt has {num_own} tokens without a text, and the model reads {context}, "
                "text and answer included; shorten the template or choose another model"
            )
        self.max_length = min(context - 1, num_own + MAX_TEXT_TOKENS)
        """The greatest number of token ids in a prompt."""
        self.prefix = _common_prefix([self._ids(text) for text in PROBES])
        """The token ids with which all prompts begin, apart from texts that merge with the prompt's last token."""

    def token_ids(self, text: str) -> tuple[list[int] | None, bool]:
        """Return the token ids before the answer, and whether the text was cut to ``max_length``.

        They are None if there is nothing to score.
        """
        text = self._special.sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text).strip()
        if not text:
            return None, False
        ids = self._ids(text)
        is_cut = len(ids) > self.max_length
        while len(ids) > self.max_length:
            offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            starts = [start for start, _ in offsets["offset_mapping"]]
            text = text[: starts[max(0, len(starts) - (len(ids) - self.max_length))]]
            ids = self._ids(text)
        return ids, is_cut

    def _ids(self, text: str) -> list[int]:
        """Return the token ids of the prompt, all that come before the answer's token."""
        return self._encode(self.head + text + self.tail + self._answer)[:-1]

    def _encode(self, prompt: str) -> list[int]:
        ids: list[int] = self._tokenizer(prompt, add_special_tokens=self._adds_special_tokens, verbose=False)[
            "input_ids"
        ]
        return ids

    def _answer_tokens(self, answers: Sequence[str]) -> list[int]:
        """Return the token of each answer where it follows the prompt."""
        sequences = [self._encode(self.head + PROBES[0] + self.tail + answer) for answer in answers]
        start = len(_common_prefix(sequences))
        for answer, sequence in zip(answers, sequences, strict=True):
            found = [self._tokenizer.decode([token]) for token in sequence[start:]]
            if len(found) > 1:
                raise InputError(
                    f"score.guard.labels: the answer {answer!r} is no single token of this model, but "
                    f"{' '.join(map(repr, found))}; name its first one, {found[0].strip()!r}, or another answer"
                )
            if not found:
                raise InputError(
                    f"score.guard.labels: the answer {answer!r} has no token of its own: another answer begins with "
                    "the same one; name answers that begin differently"
                )
        return [sequence[start] for sequence in sequences]


def _head_and_tail(options: Guard, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return what the model reads before and after the text."""
    if (num_places := options.template.count(PLACEHOLDER)) != 1:
        raise InputError(
            f"score.guard.template: it needs {PLACEHOLDER} once, in the place of the text (found {num_places} times)"
        )
    if options.chat:
        head, _, tail = _chat(options, tokenizer).partition(MARK)
    else:
        head, _, tail = options.template.partition(PLACEHOLDER)
    # Some chat templates end with the line breaks that other models write themselves.
    tail = tail.removesuffix(options.answer_prefix) + options.answer_prefix
    if not tail.strip():
        raise InputError(
            "score.guard.template: nothing stands between the text and the answer; end it with a question, or set "
            "score.guard.answer_prefix"
        )
    return head, tail


def _chat(options: Guard, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat with ``MARK`` in the text's place, up to where the model answers."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise InputError(
            "score.guard.chat: the model's tokenizer has no chat template; set score.guard.chat: false, and write the "
            "whole prompt in score.guard.template"
        )
    problem: Exception | None = None
    for in_parts in (False, True):  # templates take texts as they are, or as lists of parts
        try:
            chat: str = tokenizer.apply_chat_template(
                _messages(options, in_parts), tokenize=False, add_generation_prompt=True, **options.chat_arguments
            )
        except (TemplateError, TypeError, ValueError) as error:
            problem = error
            continue
        if MARK in chat:
            return chat
    reason = f": {str(problem).splitlines()[0]}" if problem else " and leaves the text out"
    raise InputError(
        f"score.guard.chat: the model's chat template does not take this prompt{reason}. Change score.guard.system or "
        "score.guard.chat_arguments, or write the whole prompt in score.guard.template and set score.guard.chat: false"
    )


def _messages(options: Guard, in_parts: bool) -> list[dict[str, Any]]:
    texts = {"system": options.system, "user": options.template.replace(PLACEHOLDER, MARK)}
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if in_parts else text}
        for role, text in texts.items()
        if text is not None
    ]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return a pattern of the spellings of special tokens, longest first."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    spellings = {token for token in (*added, *tokenizer.all_special_tokens) if len(token) > 1}
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or r"(?!)")


def _common_prefix(sequences: Sequence[list[int]]) -> list[int]:
    """Return the longest list of token ids with which all sequences begin."""
    for length, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return sequences[0][:length]
    return min(sequences, key=len)
