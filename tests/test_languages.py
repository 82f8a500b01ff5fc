import pytest

from xgray.errors import InputError
from xgray.languages import LANGUAGES, language


def test_there_are_the_17_languages_of_the_paper() -> None:
    assert " ".join(LANGUAGES) == "ar cs de en es fr hi id it ja ko nl pl pt ru sv zh-hans"


@pytest.mark.parametrize("known", LANGUAGES.values(), ids=list(LANGUAGES))
def test_every_spelling_leads_to_the_language(known: object) -> None:
    assert LANGUAGES[known.code] is known
    for spelling in (known.code, known.code.upper(), known.rtp_lx, known.rtp_lx.lower(), known.short):
        assert language(spelling) is known


def test_codes_of_files_and_of_perspective() -> None:
    chinese = language("zh-hans")
    assert (chinese.rtp_lx, chinese.short) == ("ZH-Hans", "zh")
    others = [known for known in LANGUAGES.values() if known is not chinese]
    assert all(known.rtp_lx == known.code.upper() and known.short == known.code for known in others)


def test_unknown_language_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown language 'zh-hant'; did you mean 'zh-hans'\?"):
        language("zh-hant")
    with pytest.raises(InputError, match="Known: ar cs de en"):
        language("klingon")


@pytest.mark.parametrize(
    ("spelling", "code"), [("pt-BR", "pt"), ("es_419", "es"), ("zh-CN", "zh-hans"), ("EN_us", "en"), (" De ", "de")]
)
def test_a_region_is_no_other_language(spelling: str, code: str) -> None:
    assert language(spelling).code == code


@pytest.mark.parametrize("spelling", ["zh-TW", "zh-hant", "pt-", "en-latn", "pt-brazil"])
def test_another_script_is_another_language(spelling: str) -> None:
    with pytest.raises(InputError, match="unknown language"):
        language(spelling)
