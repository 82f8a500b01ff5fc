"""Tokens of any vocabulary as a reader can take them in."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "␣"
"""Stands for a space, which would not be seen at a token's edge."""
CARRIER = "◌"
"""Carries a mark that stands first in a token, such as a Devanagari vowel sign."""


def token_texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """What tells a token's text by its id: its characters, or ``<0xE3><0x81>`` where it is a part of a character only.

    Vocabularies of bytes (GPT-2, BLOOM, Llama 3) spell each byte as a character of its own; those of sentencepiece
    (Llama 2, Gemma) mark a space by ``▁`` and have tokens for single bytes.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    of_bytes = '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]])
    whole = set(tokenizer.added_tokens_decoder)

    def text(token: int) -> str:
        spelled: str = tokenizer.convert_ids_to_tokens(token)
        if token in whole:
            return spelled
        if not of_bytes:
            return _readable(spelled.replace("▁", " "))
        content = bytes(byte_of[character] for character in spelled)
        try:
            return _readable(content.decode())
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in content)

    return text


def _readable(text: str) -> str:
    text = text.replace(" ", SPACE)
    carried = text.lstrip(SPACE)
    if carried and unicodedata.category(carried[0]).startswith("M"):
        return text[: len(text) - len(carried)] + CARRIER + carried
    return text
