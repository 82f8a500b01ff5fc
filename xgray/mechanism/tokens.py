"""Readable texts of single tokens, for any vocabulary."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "␣"
"""Replaces a space, which would be invisible at the edge of a token."""
CARRIER = "◌"
"""Put before a combining mark at the start of a token, such as a Devanagari vowel sign."""


def token_texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """Return a function from a token id to the token's text.

    The text consists of characters, or of bytes such as ``<0xE3><0x81>`` if the token is only a part of a character.

    Byte-level vocabularies (GPT-2, BLOOM, Llama 3) spell each byte as a separate character. SentencePiece vocabularies
    (Llama 2, Gemma) spell a space as ``▁`` and have tokens for single bytes.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    is_byte_level = '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]])
    added_tokens = set(tokenizer.added_tokens_decoder)

    def text(token: int) -> str:
        spelled: str = tokenizer.convert_ids_to_tokens(token)
        if token in added_tokens:
            return spelled
        if not is_byte_level:
            return _readable(spelled.replace("▁", " "))
        content = bytes(byte_of[character] for character in spelled)
        try:
            return _readable(content.decode())
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in content)

    return text


def _readable(text: str) -> str:
    """Make spaces visible, and give a leading combining mark a carrier."""
    text = text.replace(" ", SPACE)
    rest = text.lstrip(SPACE)
    if rest and unicodedata.category(rest[0]).startswith("M"):
        return text[: len(text) - len(rest)] + CARRIER + rest
    return text
