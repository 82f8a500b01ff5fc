"""Token texts of the two families of vocabularies, in several scripts."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xgray.mechanism.tokens import token_texts


def spelled(text):
    """As a vocabulary of bytes spells it."""
    return "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )


def wrapped(vocabulary, decoder):
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken("<｜end｜>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<｜end｜>")


@pytest.mark.parametrize("text", ["fool", " fool", "дурак", " 笨蛋", "غبي", "\n", "é"])
def test_a_vocabulary_of_bytes_shows_characters(text):
    texts = token_texts(wrapped([spelled(text)], decoders.ByteLevel()))
    assert texts(0) == text.replace(" ", "␣")
    assert texts(1) == "<｜end｜>"


def test_a_part_of_a_character_is_shown_as_bytes():
    whole = spelled("笨")
    assert len(whole) == 3
    texts = token_texts(wrapped([whole[:2], spelled(" ") + whole[:1]], decoders.ByteLevel()))
    assert (texts(0), texts(1)) == ("<0xE7><0xAC>", "<0x20><0xE7>")


def test_a_mark_that_stands_first_gets_a_carrier():
    texts = token_texts(wrapped([spelled("\u093e"), spelled(" \u093eन"), spelled("ना")], decoders.ByteLevel()))
    assert [texts(at) for at in range(3)] == ["◌\u093e", "␣◌\u093eन", "ना"]


def test_a_sentencepiece_vocabulary_shows_spaces_and_bytes():
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = token_texts(wrapped(["▁fool", "дурак", "<0xE7>", "▁▁"], decoder))
    assert [texts(at) for at in range(5)] == ["␣fool", "дурак", "<0xE7>", "␣␣", "<｜end｜>"]
