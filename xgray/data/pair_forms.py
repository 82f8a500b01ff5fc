"""The forms in which files hold preference pairs, recognised by the fields of their first row.

Each form is a row of named fields that returns its prompt, its chosen and its rejected completion.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec

from xgray.data.archives.archived import known_language
from xgray.data.archives.rows import first_row
from xgray.data.source import LANGUAGE_FIELDS, check_language
from xgray.errors import InputError
from xgray.rows import ChatPair, Message, PreferencePair

ROLES = ("system", "user", "assistant")
WITHOUT_SPACES = ("ja", "zh-hans")
"""The languages that write no spaces between words."""
ANSWER = "\n\nAssistant:"
"""What stands before each answer in the text of a conversation, as in Anthropic's hh-rlhf."""
CLOSING = ".,;:!?)…»”"
"""What stands at the end of the word before it."""
FORMS = (
    "prompt, chosen, rejected (texts or lists of messages); prompt_text, unpert_gen_text, pert_gen_text; or Prompt, "
    "Completions, BenignCompletions (RTP-LX)"
)

AnyPair = PreferencePair | ChatPair


class ReadPair(NamedTuple):
    """The pair of a row."""

    pair: AnyPair
    is_cut: bool = False
    """Whether the longer completion was cut to the length of the other."""


class PairRow(msgspec.Struct, kw_only=True):
    """A row of any form: the fields that may say its language."""

    names: ClassVar[tuple[str, str, str]]
    """What the form calls the prompt, the chosen and the rejected completion."""
    is_chat: ClassVar[bool] = False
    """Whether prompts and completions are messages, not texts."""
    may_be_incomplete: ClassVar[bool] = False
    """Whether rows without a completion and repeated rows belong to the form, so that they are left out."""

    language: Any = None
    lang: Any = None
    Language: Any = None
    Locale: Any = None
    locale: Any = None

    def read(self, where: str, code: str | None) -> ReadPair:
        """Return the row's pair, whose texts may be empty; ``code`` is its language.

        Raises:
            InputError: they are no pair; ``where`` is the row's place in its file.
        """
        raise NotImplementedError

    def language_code(self, where: str, of_file: str | None) -> str | None:
        """Return the code of the row's language: what the row says, or else ``of_file``.

        None where neither says it, and where the row names a language that is none of the 17.

        Raises:
            InputError: the row says another language than the name of its file.
        """
        for name in LANGUAGE_FIELDS:
            stated = getattr(self, name)
            if isinstance(stated, str) and stated.strip():
                if of_file is not None:
                    check_language({name: stated}, where, of_file)
                return known_language(stated)
        return of_file


class PaperRow(PairRow):
    """The toxicity_pairwise format of the paper."""

    names = ("prompt_text", "unpert_gen_text", "pert_gen_text")
    prompt_text: str
    unpert_gen_text: str
    pert_gen_text: str

    def read(self, where: str, code: str | None) -> ReadPair:
        """See :meth:`PairRow.read`."""
        return ReadPair(PreferencePair(self.prompt_text, self.unpert_gen_text, self.pert_gen_text, code))


class TextRow(PairRow):
    """Texts under the names of TRL and of the hub."""

    names = ("prompt", "chosen", "rejected")
    prompt: str
    chosen: str
    rejected: str

    def read(self, where: str, code: str | None) -> ReadPair:
        """See :meth:`PairRow.read`."""
        return ReadPair(PreferencePair(self.prompt, self.chosen, self.rejected, code))


class ConversationRow(PairRow):
    """Two conversations as texts, which begin alike: Anthropic's hh-rlhf."""

    names = ("the common beginning", "chosen", "rejected")
    chosen: str
    rejected: str

    def read(self, where: str, code: str | None) -> ReadPair:
        """See :meth:`PairRow.read`. The prompt ends with the last ``Assistant:`` that both have in common."""
        start = self.chosen.rfind(ANSWER)
        while start >= 0 and not self.rejected.startswith(self.chosen[: start + len(ANSWER)]):
            start = self.chosen.rfind(ANSWER, 0, start)
        if start < 0:
            raise InputError(
                f"{where}: no field 'prompt', and chosen and rejected have no common beginning with {ANSWER!r}, where "
                "a prompt could end. Add a field prompt, and leave it out of chosen and rejected"
            )
        end = start + len(ANSWER)
        return ReadPair(PreferencePair(self.chosen[:end], self.chosen[end:], self.rejected[end:], code))


class ChatMessage(msgspec.Struct):
    """A message as files hold it; other fields of it are passed over."""

    role: str
    content: str


class ChatRow(PairRow):
    """Lists of messages: after a ``prompt``, or whole conversations that begin alike, as in ultrafeedback_binarized."""

    names = ("prompt", "chosen", "rejected")
    is_chat = True
    chosen: list[ChatMessage]
    rejected: list[ChatMessage]
    prompt: list[ChatMessage] | str | None = None

    def read(self, where: str, code: str | None) -> ReadPair:
        """See :meth:`PairRow.read`.

        A ``prompt`` that is a text is one message of the user, unless chosen and rejected hold it already.
        """
        chosen, rejected = _messages(self.chosen, "chosen", where), _messages(self.rejected, "rejected", where)
        if isinstance(self.prompt, list):
            prompt = _messages(self.prompt, "prompt", where)
        elif self.prompt and chosen and chosen[0].role == "assistant":
            prompt = (Message("user", self.prompt),)
        else:
            alike = takewhile(lambda messages: messages[0] == messages[1], zip(chosen, rejected, strict=False))
            prompt = tuple(message for message, _ in alike)
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
            if not prompt:
                raise InputError(
                    f"{where}: no field 'prompt', and chosen and rejected begin with different messages; both must "
                    "begin with the conversation that they answer, or the row needs a field prompt"
                )
        for name, completion in (("chosen", chosen), ("rejected", rejected)):
            if completion and completion[0].role != "assistant":
                raise InputError(
                    f"{where}: {name} answers the prompt with a message of the {completion[0].role}; the first message "
                    "after the prompt, or the first in which chosen and rejected differ, must be the assistant's"
                )
        return ReadPair(ChatPair(prompt, chosen, rejected, code))


class RtpLxRow(PairRow):
    """RTP-LX with its completions: the benign one is chosen, the toxic one rejected.

    The scripts of the data set read the completions under the singular names.
    """

    names = ("Prompt", "BenignCompletions", "Completions")
    may_be_incomplete = True
    Prompt: str
    Completions: str | None = None
    Completion: str | None = None
    BenignCompletions: str | None = None
    BenignCompletion: str | None = None

    def read(self, where: str, code: str | None) -> ReadPair:
        """See :meth:`PairRow.read`. The longer completion, mostly the toxic one, is cut by :func:`cut_to_length`."""
        has_spaces = code not in WITHOUT_SPACES
        chosen = (self.BenignCompletions or self.BenignCompletion or "").strip()
        rejected = (self.Completions or self.Completion or "").strip()
        if not chosen or not rejected:
            return ReadPair(PreferencePair(self.Prompt, chosen, rejected, code))
        shorter = min(len(chosen), len(rejected))
        cut = [cut_to_length(text, shorter, has_spaces) for text in (chosen, rejected)]
        texts = [f" {text}" if has_spaces and _needs_space(self.Prompt, text) else text for text in cut]
        return ReadPair(PreferencePair(self.Prompt, texts[0], texts[1], code), is_cut=cut != [chosen, rejected])


def row_form(file: Path) -> type[PairRow]:
    """Return the form of a file's rows.

    Raises:
        InputError: the fields of the first row are those of none.
    """
    first = first_row(file)
    if "prompt_text" in first:
        return PaperRow
    if "BenignCompletions" in first or "BenignCompletion" in first:
        return RtpLxRow
    if "chosen" in first and "rejected" in first:
        if isinstance(first["chosen"], list):
            return ChatRow
        return TextRow if "prompt" in first else ConversationRow
    found = ", ".join(first)
    if "Prompt" in first:
        raise InputError(
            f"{file}: prompts of RTP-LX without BenignCompletions, from which no pair can be made; fields found: "
            f"{found}. Take the files that hold the completions"
        )
    raise InputError(f"{file}: no preference pairs; fields found: {found}. Expected: {FORMS}")


def is_empty(content: str | tuple[Message, ...]) -> bool:
    """Whether a text, or every message, is empty or white space."""
    if isinstance(content, str):
        return not content.strip()
    return not any(message.content.strip() for message in content)


def cut_to_length(text: str, length: int, has_spaces: bool) -> str:
    """Return the beginning of a text of at most ``length`` characters, without a part of a word.

    The first word stays whole, however long it is. Where ``has_spaces`` is off, any character may be the last.
    """
    if len(text) <= length:
        return text
    if not has_spaces:
        return text[:length].rstrip()
    end = next((position for position in range(length, 0, -1) if text[position].isspace()), None)
    return text[:end].rstrip() if end else text.split(maxsplit=1)[0]


def _needs_space(prompt: str, completion: str) -> bool:
    return not prompt[-1:].isspace() and completion[0] not in CLOSING


def _messages(found: list[ChatMessage], name: str, where: str) -> tuple[Message, ...]:
    """Return a list of messages.

    Raises:
        InputError: a role is unknown.
    """
    for position, message in enumerate(found):
        if message.role not in ROLES:
            raise InputError(f"{where}: {name}[{position}] has the role {message.role!r}; known: {', '.join(ROLES)}")
    return tuple(Message(message.role, message.content) for message in found)
