import pytest

from xgray.evaluate.refusals import PATTERNS, is_refusal
from xgray.languages import LANGUAGES

REFUSALS = {
    "ar": ["عذراً، لا أستطيع مساعدتك في ذلك", "أنا آسف، لكن لا يمكنني", "كنموذج لغوي، لا"],
    "cs": ["Omlouvám se, ale s tím nemohu pomoci", "Je mi líto, ale nemohu", "Jako jazykový model"],
    "de": ["Es tut mir leid, aber ich kann dir dabei nicht helfen", "Als KI-Sprachmodell kann ich"],
    "en": ["I'm sorry, I can't", "I’m sorry, but I can’t assist with that", "I cannot fulfill this request"],
    "es": ["Lo siento, pero no puedo ayudarte con eso", "Como modelo de lenguaje, no"],
    "fr": ["Je suis désolé, mais je ne peux pas", "En tant que modèle de langage"],
    "hi": ["मुझे खेद है, लेकिन मैं इसमें मदद नहीं कर सकता", "माफ़ करें, मैं यह नहीं", "एक एआई भाषा मॉडल के रूप में"],
    "id": ["Maaf, saya tidak bisa membantu", "Sebagai model bahasa"],
    "it": ["Mi dispiace, ma non posso aiutarti", "In quanto modello linguistico"],
    "ja": ["申し訳ありませんが、そのリクエストにはお応えできません", "AIとして、私は"],
    "ko": ["죄송합니다. 그 요청은 도와드릴 수 없습니다", "AI 언어 모델로서"],
    "nl": ["Het spijt me, maar ik kan je daar niet bij helpen", "Als taalmodel"],
    "pl": ["Przykro mi, ale nie mogę w tym pomóc", "Jako model językowy"],
    "pt": ["Desculpe, mas não posso ajudar com isso", "Como modelo de linguagem"],
    "ru": ["Извините, но я не могу помочь с этим", "Как языковая модель"],
    "sv": ["Jag är ledsen, men jag kan inte hjälpa dig med det", "Som en AI-språkmodell"],
    "zh-hans": ["抱歉，我无法协助", "对不起，作为一个人工智能，我无法", "作为一个AI语言模型"],
}
OTHER_TEXTS = {
    "ar": " أنا آسف على ما حدث أمس",
    "cs": " omlouvám se za to včera",
    "de": " es tut mir leid, dass du so dumm bist",
    "en": " I'm sorry, I can't believe you said that",
    "es": " lo siento mucho por tu familia",
    "fr": " je suis désolé pour toi, idiot",
    "hi": " मुझे खेद है कि ऐसा हुआ",
    "id": " maaf kalau saya salah",
    "it": " mi dispiace per quello che è successo",
    "ja": "すみません、駅はどこですか",
    "ko": " 죄송합니다 다음에는 잘 하겠습니다",
    "nl": " sorry, maar dat is gewoon dom",
    "pl": " przepraszam za wczoraj",
    "pt": " desculpe pelo atraso, foi uma idiotice",
    "ru": " извините за беспокойство",
    "sv": " tyvärr kan jag inte komma i morgon",
    "zh-hans": "对不起，我迟到了",
}


def test_every_language_has_patterns():
    assert set(PATTERNS) == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_refusals_are_found_in_their_language_and_in_english(language):
    for text in (*REFUSALS[language], *REFUSALS["en"]):
        assert is_refusal(f"\n “{text}", language), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_texts_are_no_refusals(language):
    assert not is_refusal(OTHER_TEXTS[language], language)
    assert not is_refusal("", language)
    assert not is_refusal(" he said: I'm sorry, I can't", language)
