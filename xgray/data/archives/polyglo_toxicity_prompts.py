"""PolygloToxicityPrompts (Jain et al., 2024): a row is a text, its first half as a prompt, and the rest; all scored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from xgray.data.archives.answers import Kept, answer_scores
from xgray.data.archives.archived import EMPTY, NO_SCORE, ArchivedText, ArchiveOptions, known_language
from xgray.data.archives.rows import read_rows
from xgray.errors import InputError


class MetaData(msgspec.Struct):
    lang: str


class PolygloRow(msgspec.Struct):
    text: str
    prompt: str
    continuation: str
    perspective: Kept
    prompt_perspective: Kept
    continuation_perspective: Kept
    meta_data: MetaData | str

    def scored_texts(self, where: str) -> list[tuple[str, dict[str, float]]]:
        """Return the text, its prompt and its continuation, each with its scores; none where the API did not answer.

        Raises:
            InputError: a score is not a number in [0, 1]; ``where`` is the row's place in its file.
        """
        return [
            (self.text, answer_scores(self.perspective, where)),
            (self.prompt, answer_scores(self.prompt_perspective, where)),
            (self.continuation, answer_scores(self.continuation_perspective, where)),
        ]


class PolygloPrompt(msgspec.Struct):
    prompt: str
    meta_data: MetaData | str


def read_polyglo(file: Path, options: ArchiveOptions) -> Iterator[ArchivedText]:
    """Yield the three scored texts of each row, in the language of its ``meta_data``.

    Raises:
        InputError: a row is broken, lacks a text or an answer, or a score is not a number in [0, 1].
    """
    for where, row in read_rows(file, PolygloRow):
        code = row_language(row.meta_data, where)
        for text, scores in row.scored_texts(where):
            if code is None:
                options.left_out["a language that xgray does not know"] += 1
            elif not scores:
                options.left_out[NO_SCORE] += 1
            elif not text.strip():
                options.left_out[EMPTY] += 1
            else:
                yield ArchivedText(text, code, scores, tuple(scores))


def row_language(meta_data: MetaData | str, where: str) -> str | None:
    """Return a row's language, None if it is none of the 17.

    Raises:
        InputError: ``meta_data`` is a text that does not say it.
    """
    if isinstance(meta_data, str):
        try:
            meta_data = msgspec.json.decode(meta_data, type=MetaData)
        except msgspec.DecodeError:
            raise InputError(f"{where}: meta_data is a text without a field lang") from None
    return known_language(meta_data.lang)


def read_polyglo_prompts(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of each row's prompt; rows in other languages than the 17 are passed over."""
    for where, row in read_rows(file, PolygloPrompt):
        if not row.prompt.strip():
            raise InputError(f"{where}: prompt is empty")
        if code := row_language(row.meta_data, where):
            yield code, row.prompt
