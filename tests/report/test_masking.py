import pytest

from xgray.languages import LANGUAGES
from xgray.report.masking import WORDS, mask, visible


def test_every_language_has_a_list():
    assert set(WORDS) == set(LANGUAGES)


@pytest.mark.parametrize(
    ("language", "text", "masked"),
    [
        ("en", "You idiot, IDIOTS!", "You i••••, I•••••!"),
        ("en", "a cocktail to assume in Scunthorpe", "a cocktail to assume in Scunthorpe"),
        ("de", "so ein Vollidiot.", "so ein V••••••••."),
        ("ru", "Ты дурак и идиотка", "Ты д•••• и и••••••"),
        ("ar", "يا أيها الغبي الكسول", "يا أيها ا•••• الكسول"),
        ("hi", "तुम बेवकूफ हो।", "तुम बे••• हो।"),
        ("zh-hans", "你这个笨蛋啊", "你这个笨•啊"),
        ("ja", "あいつは馬鹿だ", "あいつは馬•だ"),
        ("ko", "멍청한 바보야", "멍•한 바•야"),
        ("zh-hans", "你是idiot吗", "你是i••••吗"),
    ],
)
def test_words_are_masked_except_for_their_first_letter(language, text, masked):
    assert mask(text, language) == masked


def test_decomposed_letters_are_recognised():
    assert mask("quel imbe\u0301cile", "fr") == "quel i•••••••"


def test_markup_is_escaped_and_control_characters_are_visible():
    text = visible("<b>\n\u202e&\x07")
    assert text.startswith("&lt;b&gt;")
    assert "<b>" not in text
    assert "&amp;" in text
    for character, sign in (("\n", "↵"), ("\u202e", "U+202E"), ("\x07", "␇")):
        assert character not in text
        assert f">{sign}</span>" in text


def test_joiners_of_hindi_and_emoji_stay():
    assert visible("क्\u200dष") == "क्\u200dष"
