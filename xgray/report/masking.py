"""Masks strong words in texts that the report shows, and makes control characters visible.

The word lists are short and hold only common words, which the report says. To a text apply the list of its language and
the English list, since models often answer in English. An entry matches a whole word; a star at either end matches
further letters of the same script. Chinese, Japanese and Korean entries match anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from markupsafe import Markup, escape

BULLET = "•"

LATIN = "[A-Za-zÀ-ɏ]"
CYRILLIC = "[Ѐ-ӿ]"
ARABIC = "[\u0620-\u065f\u066e-\u06d3]"
DEVANAGARI = "[\u0900-\u0963\u0970-\u097f]"
LETTERS: dict[str, str | None] = {
    "ar": ARABIC,
    "hi": DEVANAGARI,
    "ru": CYRILLIC,
    **dict.fromkeys(("ja", "ko", "zh-hans")),
}
"""The letters of a language's script: Latin where not listed, None where no spaces separate words."""

WORDS = {
    "ar": """
        *غبي* *أغبياء* *أحمق* *احمق* *حمقى* *حقير* *قذر* *عاهر* *شرموط* *كلب* *كلاب* *حمار* *وسخ* *لعين* *تافه*
        *قحب* *خنزير* *زبالة* خرا خراء كس
    """,
    "cs": """
        idiot* debil* kretén* blb* hloup* pitom* hovn* prdel* kurv* sráč* svin* hajzl* píč* kokot* čurák* zmrd* jeb*
        mrch* parchant*
    """,
    "de": """
        idiot* vollidiot* trottel* depp depper* deppen* arsch* *arschloch* *scheiß* *scheiss* hure* huren* fotze* fick*
        gefickt wichser* miststück* schlampe* bastard* drecksack* dreckskerl* verpiss* nutte* kack* schwuchtel* spast*
        dummkopf* blödmann* vollpfosten
    """,
    "en": """
        fuck* motherfuck* shit* bullshit* bitch* ass asses asshole* arse arsehole* dumbass* jackass* bastard* cunt* dick
        dicks dickhead* prick pricks piss* whore* slut* wank* twat* cock cocks pussy crap crappy idiot* moron* imbecile*
        retard* scumbag* douche* nigg* fagg*
    """,
    "es": """
        idiota* imbécil* imbecil* estúpid* gilipoll* puta* puto* hijoput* mierda* cabrón* cabron* pendej* coño* joder*
        jodid* maric* zorra* culo culos verga* ching* capull* polla pollas subnormal* bastard* carajo
    """,
    "fr": """
        idiot* imbécile* crétin* con cons conne* connard* connass* merd* pute putes putain* salop* salaud* encul*
        bâtard* abruti* débile* foutre niqu* bite bites couille* chier* chiant* pétasse* pouffiasse* enfoiré*
    """,
    "hi": """
        बेवकूफ* मूर्ख* गधा गधे कुत्ता कुत्ते कुतिया* कमीन* हराम* चूतिय* गांड* साला साले सूअर* भड़व* रंडी* मादरचोद* बहनचोद*
        भोसड़* निकम्म*
    """,
    "id": """
        goblok* tolol* bodoh* dungu* anjing* bangsat* brengsek* bajingan* kontol* memek* ngentot* jancok* babi sialan*
        idiot* keparat* tai pelacur* lonte* kampret*
    """,
    "it": """
        idiot* cretin* imbecill* deficient* stronz* merd* cazz* puttan* troia troie bastard* coglion* vaffancul* culo
        culi fott* minchi* zoccol* froci*
    """,
    "ja": """
        馬鹿 バカ ばかやろう ばか者 アホ 阿呆 クソ 糞 畜生 ちくしょう 死ね クズ 野郎 間抜け まぬけ ビッチ 売女
    """,
    "ko": """
        바보 멍청 병신 씨발 시발 씹 새끼 미친놈 미친년 좆 지랄 창녀 걸레 등신 얼간이 머저리 닥쳐
    """,
    "nl": """
        idioot idiote* idioten klootzak* kut* lul lullen eikel* hoer* kanker* tering* godverdom* verdomme* klote*
        sukkel* mongool* trut* flikker* neuk* schijt* stront* rotzak* debiel* imbeciel* smeerlap* slet sletten
    """,
    "pl": """
        idiot* kretyn* debil* kurw* kurew* chuj* pierdol* spierd* wypierd* jeb* zjeb* dupa dupy dupę dupek* skurw* gówn*
        cipa cipy suka suki dziwk* szmat* pizd* palant* dureń* durni* frajer*
    """,
    "pt": """
        idiota* imbecil* merda* porra* caralho* puta* puto* foda* foder* fodid* cu cabrã* babaca* otári* viado* buceta*
        cacete* vagabund* desgraçad* corno* cretin* bosta* escrot* arrombad*
    """,
    "ru": """
        идиот* дебил* кретин* дурак* дурац* дура дуры бля* сука суки суку сукин* хуй* хуе* хуё* пизд* еба* ёба* заеб*
        пидор* пидар* гандон* мудак* мудил* говн* дерьм* жоп* шлюх* твар* ублюд* урод* сволоч* придур* козёл козел
        тупиц* мраз* мерзав*
    """,
    "sv": """
        idiot* jävl* djävl* jävel fan fitt* kuk* hora* horor* skit* förbann* helvet* kärring* röv rövhål* knull* slyna*
        bög* svin* dumskall* dumbom* miffo* subba*
    """,
    "zh-hans": """
        白痴 笨蛋 傻瓜 傻逼 傻子 蠢货 蠢猪 混蛋 王八蛋 他妈的 妈的 操你 肏 狗屎 婊子 贱人 贱货 畜生 狗屁 滚蛋 去死 废物
        脑残 屄 鸡巴 人渣 杂种
    """,
}


@lru_cache
def _pattern(language: str) -> re.Pattern[str]:
    alternatives = []
    for code in dict.fromkeys((language, "en")):
        letters = LETTERS.get(code, LATIN)
        for entry in WORDS[code].split():
            if letters is None:
                alternatives.append(re.escape(entry))
                continue
            start = f"{letters}*" if entry.startswith("*") else ""
            end = f"{letters}*" if entry.endswith("*") else ""
            alternatives.append(f"(?<!{letters}){start}{re.escape(entry.strip('*'))}{end}(?!{letters})")
    return re.compile("|".join(alternatives), re.IGNORECASE)


def mask(text: str, language: str) -> str:
    """Return ``text`` with every letter but the first of each listed word replaced by a bullet."""
    return _pattern(language).sub(lambda match: _masked(match[0]), unicodedata.normalize("NFC", text))


def _masked(word: str) -> str:
    """Return the word's first letter, and a bullet for each other letter; a mark goes with the letter before it."""
    letters = [index for index, character in enumerate(word) if not unicodedata.category(character).startswith("M")]
    end = letters[1] if len(letters) > 1 else len(word)
    return word[:end] + BULLET * (len(letters) - 1)


def visible(text: str) -> Markup:
    """Return ``text`` escaped, with control and direction characters as visible signs that have no effect."""
    return Markup("").join(_sign(character) if _is_control(character) else escape(character) for character in text)


def _is_control(character: str) -> bool:
    # The joiners are part of Hindi spelling and of emoji.
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") and character not in "\u200c\u200d"


def _sign(character: str) -> Markup:
    code = ord(character)
    sign = "↵" if code == 0x0A else chr(0x2400 + code) if code < 0x20 else f"U+{code:04X}"
    return Markup('<span class="control" title="U+{:04X}">{}</span>').format(code, sign)
