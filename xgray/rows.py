"""The rows that pass between stages, and their Parquet schemas.

The unit of work is the prompt: its k completions are one row, generated together, scored together and written
together. So no file ever holds part of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import pyarrow as pa

PAPER_ATTRIBUTES = ("toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat")
"""The attributes of Perspective that the paper uses, in lower case. Perspective measures them in all languages."""
ATTRIBUTES = (*PAPER_ATTRIBUTES, "sexually_explicit")
"""The attributes that a scorer may measure. Perspective measures sexually_explicit in English alone."""

EMPTY_TEXT = "empty text"
"""The error of a completion without a score because it holds nothing but white space."""

NOT_ARCHIVED = "not in the score store"
"""The error of a text that is scored from archived scores alone, which lack it."""

NOT_VALIDATED = "not scored: the scorer was not validated in this language"
"""The error of a completion without a score because of its language; it is counted by itself, as no failure."""

AttributeScores = dict[str, float | None]
"""One completion's scores by attribute, each in [0, 1]; an attribute that was not measured is None."""


def utc_now() -> str:
    """Return the present time in UTC, to the second, as files hold it: ``2026-11-05T12:00:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Prompt:
    """A text that models complete."""

    prompt_id: str
    """``{language}/{index}``: unique even where texts repeat."""
    language: str
    text: str


def item_ids(prompt_ids: Sequence[str], language: str) -> list[str]:
    """Return the ids without their language, ``{index}``: in parallel data, translations have the same index."""
    return [prompt_id.removeprefix(f"{language}/") for prompt_id in prompt_ids]


@dataclass(frozen=True)
class Completions:
    """One prompt and the k completions that one model wrote for it."""

    prompt_id: str
    language: str
    model: str
    """The model's name in this experiment: ``base`` or the name of a variant."""
    prompt: str
    completions: list[str]
    token_counts: list[int]
    """Tokens of each completion; empty for completions that came from a file."""
    finish_reasons: list[str]
    """``length`` or ``stop``, from the engine; ``imported`` for completions that came from a file."""
    error: str | None = None
    """Why there are no completions, if the engine failed on this prompt at every try."""


@dataclass(frozen=True)
class Scores:
    """The scores of one prompt's k completions, in their order."""

    prompt_id: str
    language: str
    model: str
    scores: list[AttributeScores]
    errors: list[str | None]
    """Why a completion has no score; None if it has a score."""
    scorer: str
    scorer_version: str


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a chosen and a rejected completion."""

    prompt: str
    chosen: str
    rejected: str
    language: str | None = None
    """A code of :data:`xgray.languages.LANGUAGES`; None where the file does not say it."""


class Message(NamedTuple):
    """A message of a chat."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@dataclass(frozen=True)
class ChatPair:
    """A conversation with a chosen and a rejected continuation, each of one message or more."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """Its first message is the assistant's."""
    rejected: tuple[Message, ...]
    """Likewise."""
    language: str | None = None
    """As in :class:`PreferencePair`."""

    def as_text(self) -> PreferencePair:
        """Return the contents of the messages as a pair of texts, each message on a line of its own."""
        prompt, chosen, rejected = (
            "\n".join(message.content for message in messages) for messages in (self.prompt, self.chosen, self.rejected)
        )
        return PreferencePair(f"{prompt}\n", chosen, rejected, self.language)


Pairs = Sequence[PreferencePair] | Sequence[ChatPair]
"""Pairs of one kind."""


Row = TypeVar("Row", Completions, Scores)


def schema(row_type: type[Row]) -> pa.Schema:
    """Return the Parquet schema of a row type."""
    import pyarrow as pa

    key: list[tuple[str, pa.DataType]] = [("prompt_id", pa.string()), ("language", pa.string()), ("model", pa.string())]
    if row_type is Completions:
        return pa.schema(
            [
                *key,
                ("prompt", pa.string()),
                ("completions", pa.list_(pa.string())),
                ("token_counts", pa.list_(pa.int32())),
                ("finish_reasons", pa.list_(pa.string())),
                ("error", pa.string()),
            ]
        )
    return pa.schema(
        [
            *key,
            ("scores", pa.list_(pa.struct([(name, pa.float64()) for name in ATTRIBUTES]))),
            ("errors", pa.list_(pa.string())),
            ("scorer", pa.string()),
            ("scorer_version", pa.string()),
        ]
    )


def to_table(rows: Sequence[Row], row_type: type[Row]) -> pa.Table:
    """Return rows as an Arrow table; attributes that a scorer does not measure become null."""
    import pyarrow as pa

    row_schema = schema(row_type)
    columns = {name: [getattr(row, name) for row in rows] for name in row_schema.names}
    return pa.Table.from_pydict(columns, schema=row_schema)


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """Return the rows of a table that :func:`to_table` made."""
    return [row_type(**record) for record in table.to_pylist()]
