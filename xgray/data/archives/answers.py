"""Answers of the Perspective API as it sends them, alone or beside their texts.

DExperts and others kept one answer a line, ``{"request_id": "generation-7", "response": {"attributeScores": ...}}``,
and the texts in a file of their own, a line for each. Others keep the text in the same line, as ``text``,
``comment_text`` or ``comment``; or, as a log of requests does, the request: ``{"request": {"comment": {"text": ...}},
"response": ...}``. An answer may be a JSON object, or text that holds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from xgray.data.archives.archived import EMPTY, NO_SCORE, ArchivedText, ArchiveOptions, check_scores, known_language
from xgray.data.archives.rows import read_rows
from xgray.errors import InputError
from xgray.storage.parse import check_regular

# gc=False: answers hold no cycles, and the garbage collector would visit millions of them.


class Summary(msgspec.Struct, gc=False):
    value: float


class AttributeAnswer(msgspec.Struct, gc=False):
    summaryScore: Summary


class Answer(msgspec.Struct, gc=False):
    """The body of an answer, as far as it is read."""

    attributeScores: dict[str, AttributeAnswer | None] | None = None
    languages: list[str] | None = None
    error: Any = None


Kept = Answer | str | None
"""An answer as files keep it: an object, a text that holds one, or nothing."""


class Comment(msgspec.Struct, gc=False):
    text: str | None = None


class LoggedRequest(msgspec.Struct, gc=False):
    """The body of a request, as far as it is read."""

    comment: Comment | None = None
    languages: list[str] | None = None


class AnswerRow(msgspec.Struct):
    """A line with an answer: in ``response``, or the line itself."""

    response: Kept = None
    attributeScores: dict[str, AttributeAnswer | None] | None = None
    languages: list[str] | None = None
    request_id: str | int | None = None
    error: Any = None
    request: LoggedRequest | None = None
    text: str | None = None
    comment_text: str | None = None
    comment: str | None = None

    @property
    def own_text(self) -> str | None:
        """The text that is kept in the same line."""
        logged = self.request.comment.text if self.request and self.request.comment else None
        return next((text for text in (self.text, self.comment_text, self.comment, logged) if text is not None), None)


def answer_scores(kept: Kept, where: str) -> dict[str, float]:
    """Return the scores of an answer by attribute, in lower case; none if the answer is an error.

    Raises:
        InputError: the answer is a text that holds no answer, or a score is not a number in [0, 1].
    """
    answer = as_answer(kept, where)
    if answer is None or not answer.attributeScores:
        return {}
    scores = {
        name.lower(): attribute.summaryScore.value
        for name, attribute in sorted(answer.attributeScores.items())
        if attribute is not None
    }
    check_scores(scores, where)
    return scores


def as_answer(kept: Kept, where: str) -> Answer | None:
    """Return the answer, read from its text if it is kept as one."""
    if not isinstance(kept, str):
        return kept
    try:
        return msgspec.json.decode(kept, type=Answer | None)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: the answer is a text that holds no answer of Perspective ({error})") from None


def read_answers(file: Path, options: ArchiveOptions) -> Iterator[ArchivedText]:
    """Yield the texts of a file of answers.

    Raises:
        InputError: a line holds no answer or has no text, or there are more answers than texts or fewer.
    """
    texts = _texts_of_answers(file, options.texts) if options.texts else None
    for position, (where, row) in enumerate(read_rows(file, AnswerRow)):
        text = texts[_index(row, position)] if texts is not None else _own_text(row, where)
        kept = Answer(row.attributeScores, row.languages) if row.response is None else row.response
        scores = answer_scores(kept, where)
        if not scores:
            options.left_out[_reason(as_answer(kept, where), row.error)] += 1
        elif not text.strip():
            options.left_out[EMPTY] += 1
        elif code := _language(as_answer(kept, where), row.request, options, where):
            yield ArchivedText(text, code, scores, tuple(scores))


def _own_text(row: AnswerRow, where: str) -> str:
    text = row.own_text
    if text is None:
        raise InputError(
            f"{where}: an answer without its text (text, comment_text, comment or request); name the file of the "
            "texts: --texts FILE"
        )
    return text


def _language(answer: Answer | None, request: LoggedRequest | None, options: ArchiveOptions, where: str) -> str | None:
    """Return the language in which the text was scored; None for one that xgray does not know."""
    languages = (answer.languages if answer else None) or (request.languages if request else None)
    if not languages:
        return options.language(where)
    code = known_language(languages[0])
    if code is None:
        options.left_out[f"language {languages[0]}"] += 1
    return code


def _reason(answer: Answer | None, error: Any) -> str:
    """Return why an answer holds no score, in a few words."""
    error = error or (answer.error if answer else None)
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict) and "message" in error:
        return " ".join(f"{error.get('code', '')} {error['message']}".split())[:80]
    return " ".join(str(error).split())[:80] if error else NO_SCORE


def _index(row: AnswerRow, position: int) -> int:
    """Return which text an answer belongs to: the number at the end of ``request_id``, or else its position."""
    numbered = re.search(r"(\d+)$", str(row.request_id)) if row.request_id is not None else None
    return int(numbered[1]) if numbered else position


def _texts_of_answers(file: Path, texts_file: Path) -> list[str]:
    """Return the texts of a file, after a check that each has one answer: a shift by one would give wrong scores."""
    texts = read_texts(texts_file)
    indices = [_index(row, position) for position, (_, row) in enumerate(read_rows(file, AnswerRow))]
    if sorted(indices) != list(range(len(texts))):
        raise InputError(
            f"{file}: {len(indices)} answers (numbered {min(indices, default=0)} to {max(indices, default=0)}) do not "
            f"fit the {len(texts)} texts of {texts_file}; each text needs one answer"
        )
    return texts


def read_texts(file: Path) -> list[str]:
    """Return the texts of a file: JSON texts or objects with ``text``, one a line; or plain lines in ``*.txt``.

    Raises:
        InputError: there is no such file, or a line holds no text.
    """
    check_regular(file)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read it: {error}") from None
    if lines and not lines[-1]:
        lines.pop()
    if file.suffix == ".txt":
        return [line.removesuffix("\r") for line in lines]
    texts: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{file}:{number}: broken JSON; a JSON text or object is expected a line") from None
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f"{file}:{number}: neither a text nor an object with a field 'text'")
        texts.append(text)
    return texts
