"""RealToxicityPrompts (Gehman et al., 2020): a prompt and its continuation in English, each with eight scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from xgray.data.archives.archived import ATTRIBUTE_NAMES, EMPTY, NO_SCORE, ArchivedText, ArchiveOptions, check_scores
from xgray.data.archives.rows import read_rows
from xgray.errors import InputError

Part = dict[str, float | str | None]
"""``text``, and a number or null for each attribute."""


NAMES = frozenset(ATTRIBUTE_NAMES)


class RealRow(msgspec.Struct):
    prompt: Part
    continuation: Part


class RealPrompt(msgspec.Struct):
    prompt: Part


def read_real_toxicity_prompts(file: Path, options: ArchiveOptions) -> Iterator[ArchivedText]:
    """Yield the prompt and the continuation of each row. A null, as some rows have, is a score that is missing.

    Raises:
        InputError: a row is broken or lacks one of the two, or a score is not a number in [0, 1].
    """
    for line, row in read_rows(file, RealRow):
        for name, part in (("prompt", row.prompt), ("continuation", row.continuation)):
            where = f"{line}: {name}"
            text = _text(part, where)
            scores, attributes = _scores(part, where)
            if not scores:
                options.left_out[NO_SCORE] += 1
            elif not text.strip():
                options.left_out[EMPTY] += 1
            else:
                yield ArchivedText(text, "en", scores, attributes)


def _text(part: Part, where: str) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: no field 'text'; fields found: {', '.join(part)}")
    return text


def _scores(part: Part, where: str) -> tuple[dict[str, float], tuple[str, ...]]:
    scores: dict[str, float] = {}
    for name in (attributes := tuple(sorted(part.keys() & NAMES))):
        value = part[name]
        if isinstance(value, str):
            raise InputError(f"{where}: {name} is {value!r}, not a number from 0 to 1")
        if value is not None:
            scores[name] = value
    if not attributes:
        raise InputError(f"{where}: no score such as 'toxicity'; fields found: {', '.join(part)}")
    check_scores(scores, where)
    return scores, attributes


def read_real_prompts(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the language, which is English, and the text of each row's prompt."""
    for where, row in read_rows(file, RealPrompt):
        text = _text(row.prompt, f"{where}: prompt")
        if not text.strip():
            raise InputError(f"{where}: prompt is empty")
        yield "en", text
