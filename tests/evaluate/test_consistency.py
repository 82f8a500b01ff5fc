import numpy as np
import pytest

from xgray.evaluate.consistency import completion_languages, has_latin_word, identify
from xgray.languages import LANGUAGES

COMPLETIONS = {
    "ar": " لا أعرف ماذا أقول بعد الآن عن هذا الأمر",
    "cs": " nevím, co na to mám říct, je to opravdu hloupé",
    "de": " und dann ist er einfach nach Hause gegangen",
    "en": " and then he just went home without a word",
    "es": " y luego se fue a su casa sin decir una palabra",
    "fr": " et puis il est rentré chez lui sans dire un mot",
    "hi": " और फिर वह बिना कुछ कहे घर चला गया",
    "id": " dan kemudian dia pulang ke rumah tanpa bicara",
    "it": " e poi è tornato a casa senza dire una parola",
    "ja": "そして彼は何も言わずに家に帰りました",
    "ko": " 그리고 그는 아무 말도 없이 집에 갔다",
    "nl": " en toen is hij gewoon zonder iets te zeggen naar huis gegaan",
    "pl": " a potem po prostu poszedł do domu bez słowa",
    "pt": " e depois ele foi para casa sem dizer uma palavra",
    "ru": " а потом он просто пошёл домой, не сказав ни слова",
    "sv": " och sedan gick han bara hem utan att säga något",
    "zh-hans": "然后他什么也没说就回家了",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_completion_in_each_language_is_identified(language):
    assert identify(COMPLETIONS[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 12345 67, 2020-11-12",
        "for (i = 0; i < n; i++) { x[i] += 1; }",
        "😂😂😂",
        "!!! ...",
        " New York Times",
        "ok",
    ],
)
def test_digits_code_and_names_are_unknown(text):
    assert identify(text) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Δεν ξέρω τι να πω", "el"),
        ("ฉันไม่รู้จะพูดอะไร", "th"),
        ("Tôi không biết phải nói gì", "vi"),
        ("然後他什麼也沒說就回家了", "zh-hans"),
    ],
)
def test_other_languages_and_traditional_characters(text, language):
    assert identify(text) == language


def test_addresses_do_not_count_as_text():
    address = " https://www.example.org/and-then-he-went-home-without-a-word"
    assert identify(address) is None
    assert identify(COMPLETIONS["ru"] + address) == "ru"
    assert not has_latin_word("смотри" + address + " @somebody #topic")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("это просто stupid", True),
        ("你真是 idiot 啊", True),
        ("это 5G и TV", False),
        ("совсем глупо", False),
        ("café", True),
    ],
)
def test_words_in_latin_letters(text, expected):
    assert has_latin_word(text) is expected


def test_languages_of_completions():
    found = completion_languages(
        [
            [COMPLETIONS["ru"], COMPLETIONS["en"], " 123", " \n"],
            [COMPLETIONS["ru"] + " stupid", COMPLETIONS["en"]],
            [],
        ],
        "ru",
    )
    assert found.is_text.tolist() == [[True, True, True, False], [True, True, False, False], [False] * 4]
    assert found.is_consistent.tolist() == [[True, False, False, False], [True, False, False, False], [False] * 4]
    assert found.is_other.tolist() == [[False, True, False, False], [False, True, False, False], [False] * 4]
    assert found.is_unknown.tolist() == [[False, False, True, False], [False] * 4, [False] * 4]
    assert found.has_latin.tolist() == [[False, True, False, False], [True, True, False, False], [False] * 4]
    assert found.others == {"en": 2}


def test_no_completions_have_no_languages():
    found = completion_languages([[], []], "en")
    assert found.is_text.shape == (2, 0)
    assert np.array_equal(found.is_unknown, found.is_text)


def test_a_long_text_without_spaces_is_identified():
    """Half a million characters, which take hours if each is looked at for each."""
    assert identify("你好，今天天气很好" * 60_000) == "zh-hans"
    assert identify("今天天气很好，我们去公园散步吧联系wang.li@example.org") == "zh-hans"
