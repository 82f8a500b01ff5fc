"""Parallel prompts: the same prompts in several languages, line by line, ``dpo_toxicity_pairwise_{lang}_200.jsonl``.

The released files of 14 languages hold HTML entities (``&quot;``, ``&#39;``), 1 to 113 of the 200 lines each; those of
English, Japanese and Chinese hold none. Left in, they are a difference between languages that is no difference of
language.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from xgray.data.source import located, records
from xgray.errors import InputError
from xgray.languages import LANGUAGES, language

ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
"""An entity with its semicolon: html.unescape alone would also take ``&copy`` in ``a&copy=b``."""


def read_parallel(folder: str, languages: Sequence[str], repair_entities: bool = True) -> dict[str, list[str]]:
    """The prompts of each language; line i of one language translates line i of every other.

    Args:
        repair_entities: whether HTML entities become the characters that they stand for.

    Raises:
        InputError: a language's file is missing, a line is broken, or the files differ in length.
    """
    source = located(folder, "parallel")
    files = {code: source / f"dpo_toxicity_pairwise_{known.short}_200.jsonl" for code, known in LANGUAGES.items()}
    prompts: dict[str, list[str]] = {}
    for code in (language(one).code for one in languages):
        if not files[code].is_file():
            present = " ".join(known for known, file in files.items() if file.is_file()) or "none"
            raise InputError(f"{files[code]}: no such file; languages present: {present}")
        texts = [record.filled("Prompt") for record in records(files[code])]
        prompts[code] = [ENTITY.sub(_character, text) for text in texts] if repair_entities else texts
    if len({len(texts) for texts in prompts.values()}) > 1:
        counts = ", ".join(f"{files[code].name} {len(texts)}" for code, texts in prompts.items())
        raise InputError(f"{source}: parallel files must have as many prompts each: {counts}")
    return prompts


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])
