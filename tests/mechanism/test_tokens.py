"""Token texts of byte-level and SentencePiece vocabularies, in several scripts."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xgray.mechanism.tokens import token_texts


def spelled(text):
    """Spell a text as a byte-level vocabulary does."""
    return "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )


def make_tokenizer(vocabulary, decoder):
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken("<｜end｜>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<｜end｜>")


@pytest.mark.parametrize("text", ["fool", " fool", "дурак", " 笨蛋", "غبي", "\n", "é"])
def test_a_byte_level_vocabulary_shows_characters(text):
    texts = token_texts(make_tokenizer([spelled(text)], decoders.ByteLevel()))
    assert texts(0) == text.replace(" ", "␣")
    assert texts(1) == "<｜end｜>"


def test_a_part_of_a_character_is_shown_as_bytes():
    character = spelled("笨")
    assert len(character) == 3
    texts = token_texts(make_tokenizer([character[:2], spelled(" ") + character[:1]], decoders.ByteLevel()))
    assert (texts(0), texts(1)) == ("<0xE7><0xAC>", "<0x20><0xE7>")


def test_a_leading_combining_mark_gets_a_carrier():
    texts = token_texts(make_tokenizer([spelled("\u093e"), spelled(" \u093eन"), spelled("ना")], decoders.ByteLevel()))
    assert [texts(token) for token in range(3)] == ["◌\u093e", "␣◌\u093eन", "ना"]


def test_a_sentencepiece_vocabulary_shows_spaces_and_bytes():
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = token_texts(make_tokenizer(["▁fool", "дурак", "<0xE7>", "▁▁"], decoder))
    assert [texts(token) for token in range(5)] == ["␣fool", "дурак", "<0xE7>", "␣␣", "<｜end｜>"]
