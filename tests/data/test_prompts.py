import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.config import Prompts
from xgray.data.prompts import check_english, prompts_fingerprint, read_prompts
from xgray.errors import InputError
from xgray.languages import LANGUAGES


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def refused(section: Prompts, *languages: str) -> str:
    with pytest.raises(InputError) as caught:
        list(read_prompts(section, languages))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_is_read_language_by_language_with_ids_from_text_and_number(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_DE.json", {"Prompt": "Du bist", "Index": "204"}, {"Prompt": "Er ist", "Index": "7"})
    write(tmp_path / "RTP_LX_EN.json", {"Prompt": "You are", "Index": 204})
    prompts = list(read_prompts(Prompts(path=str(tmp_path)), ["en", "de"]))
    assert [(prompt.prompt_id, prompt.language, prompt.text) for prompt in prompts] == [
        ("en/204", "en", "You are"),
        ("de/204", "de", "Du bist"),
        ("de/7", "de", "Er ist"),
    ]


def test_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_AR.json", {"Prompt": "one\u2028two\u2029three\x85four", "Index": 1})
    (prompt,) = read_prompts(Prompts(path=str(tmp_path)), ["ar"])
    assert prompt.text == "one\u2028two\u2029three\x85four"


def test_byte_order_mark_carriage_returns_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"Prompt": "a", "Index": 1}\r\n\r\n{"Prompt": "b", "Index": 2}'
    (tmp_path / "RTP_LX_EN.json").write_bytes(content)
    assert [prompt.text for prompt in read_prompts(Prompts(path=str(tmp_path)), ["en"])] == ["a", "b"]


def test_chinese_file_is_found_under_its_own_code(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_ZH-Hans.json", {"Prompt": "你", "Index": 3})
    assert next(read_prompts(Prompts(path=str(tmp_path)), ["zh"])).prompt_id == "zh-hans/3"


def test_texts_may_repeat_but_ids_may_not(tmp_path: Path) -> None:
    section = Prompts(path=str(tmp_path))
    write(tmp_path / "RTP_LX_CS.json", {"Prompt": "Jsi", "Index": 1}, {"Prompt": "Jsi", "Index": 2})
    assert [prompt.prompt_id for prompt in read_prompts(section, ["cs"])] == ["cs/1", "cs/2"]
    write(
        tmp_path / "RTP_LX_CS.json",
        {"Prompt": "A", "Index": 1},
        {"Prompt": "B", "Index": 2},
        {"Prompt": "C", "Index": "1"},
    )
    message = refused(section, "cs")
    assert "RTP_LX_CS.json:3" in message
    assert "line 1" in message


def test_limit_takes_the_first_of_each_language(tmp_path: Path) -> None:
    for code in ("EN", "DE"):
        write(tmp_path / f"RTP_LX_{code}.json", *({"Prompt": f"{code}{i}", "Index": i} for i in range(5)))
    prompts = list(read_prompts(Prompts(path=str(tmp_path), limit=2), ["de", "en"]))
    assert [prompt.text for prompt in prompts] == ["DE0", "DE1", "EN0", "EN1"]


def test_missing_language_names_the_file_and_the_languages_present(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_EN.json", {"Prompt": "a", "Index": 1})
    write(tmp_path / "RTP_LX_ZH-Hans.json", {"Prompt": "a", "Index": 1})
    message = refused(Prompts(path=str(tmp_path)), "en", "fr")
    assert "RTP_LX_FR.json" in message
    assert message.endswith("languages present: en zh-hans")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\r\n \n", "the file is empty"),
        (b'{"Prompt": "a", "Index": 1}\n{"Prompt": "b"', ":2: broken JSON"),
        (b'{"Prompt": "a", "Index": 1}\n["b"]\n', ":2: a JSON object is expected"),
        (b'{"Prompt": "a", "Index": 1}\n{"Prompt": "caf\xe9", "Index": 2}\n', ":2: not UTF-8"),
        (b'{"Prompt": "a", "Index": 1}\n\n{"Text": "b", "Index": 2}\n', ":3: no field 'Prompt'"),
        (b'{"Prompt": " ", "Index": 1}\n', ":1: Prompt is empty"),
        (b'{"Prompt": null, "Index": 1}\n', ":1: Prompt must be text"),
        (b'{"Prompt": "a\\ud83d", "Index": 1}\n', ":1: Prompt holds half a surrogate pair"),
        (b'{"Prompt": "a", "Index": null}\n', ":1: Index must be"),
        (b'{"Prompt": "a", "Index": 1}\n{"Prompt": "b"}\n', ":2: either all prompts"),
    ],
)
def test_broken_file_is_refused_by_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "RTP_LX_EN.json").write_bytes(content)
    message = refused(Prompts(path=str(tmp_path)), "en")
    assert "RTP_LX_EN.json" in message
    assert expected in message


def test_missing_path_is_refused(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(Prompts(path=str(tmp_path / "nowhere")), "en")


def test_single_file_takes_its_language_from_locale(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.jsonl",
        {"Prompt": "Você", "Index": 1, "Locale": "Pt-Br"},
        {"Prompt": "Tu", "Index": 2, "Locale": "PT"},
    )
    assert [prompt.prompt_id for prompt in read_prompts(Prompts(path=str(file)), ["pt"])] == ["pt/1", "pt/2"]
    assert "set languages to [pt]" in refused(Prompts(path=str(file)), "en", "pt")


def test_single_file_without_locale_or_index_needs_exactly_one_language(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", {"Prompt": "a"}, {"Prompt": "a"})
    assert [prompt.prompt_id for prompt in read_prompts(Prompts(path=str(file)), ["en"])] == ["en/0", "en/1"]
    assert "set languages" in refused(Prompts(path=str(file)), "en", "de")


def test_single_file_of_several_or_unknown_languages_is_refused(tmp_path: Path) -> None:
    mixed = write(tmp_path / "mixed.jsonl", {"Prompt": "a", "Locale": "EN"}, {"Prompt": "b", "Locale": "DE"})
    assert "mixed.jsonl:2" in refused(Prompts(path=str(mixed)), "en")
    for locale in ("TH", "ZH-Hant", "zh-TW"):
        other = write(tmp_path / "other.jsonl", {"Prompt": "a", "Locale": locale})
        assert "other.jsonl:1: Locale: unknown language" in refused(Prompts(path=str(other)), "zh-hans")


@pytest.fixture(scope="module")
def embedded() -> Callable[[str], list[str]]:
    prompts = list(read_prompts(Prompts(), list(LANGUAGES)))
    return lambda code: [prompt.text for prompt in prompts if prompt.language == code]


@pytest.mark.parametrize("code", LANGUAGES)
def test_embedded_prompts_are_there_in_every_language(embedded: Callable[[str], list[str]], code: str) -> None:
    texts = embedded(code)
    assert len(texts) >= 20
    assert len(set(texts)) == len(texts)
    assert len(texts) == len(embedded("en"))


def polyglo(language: str, number: int) -> dict[str, object]:
    return {"text": "x", "prompt": f"You fool {number},", "meta_data": {"lang": language}, "perspective": None}


def test_polyglo_toxicity_prompts_serve_in_all_languages_of_one_file_or_of_a_folder(tmp_path: Path) -> None:
    rows = [polyglo(code, number) for number in range(3) for code in ("de", "zh", "tr", "en")]
    mixed = write(tmp_path / "ptp.jsonl", *rows)
    expected = [
        ("zh-hans/0", "You fool 0,"),
        ("zh-hans/1", "You fool 1,"),
        ("en/0", "You fool 0,"),
        ("en/1", "You fool 1,"),
    ]
    parquet = tmp_path / "ptp.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    folder = tmp_path / "folder"
    folder.mkdir()
    for code in ("de", "en", "zh"):
        write(folder / f"{code}.jsonl", *(row for row in rows if row["meta_data"] == {"lang": code}))
    for path in (mixed, parquet, folder):
        prompts = list(read_prompts(Prompts(path=str(path), limit=2), ["zh-hans", "en"]))
        assert [(prompt.prompt_id, prompt.text) for prompt in prompts] == expected
        assert len(list(read_prompts(Prompts(path=str(path)), ["de"]))) == 3
        assert len(prompts_fingerprint(Prompts(path=str(path)), ["de"])) == 64
        check_english(Prompts(path=str(path)), ["zh-hans", "en"], "vectors")
    assert "no prompts in ko; set languages to some of de en zh-hans" in refused(Prompts(path=str(mixed)), "ko", "de")


def test_real_toxicity_prompts_serve_in_english(tmp_path: Path) -> None:
    file = write(
        tmp_path / "prompts.jsonl", {"prompt": {"text": "You fool", "toxicity": 0.5}, "continuation": {"text": "x"}}
    )
    (prompt,) = read_prompts(Prompts(path=str(file)), ["en"])
    assert (prompt.prompt_id, prompt.language, prompt.text) == ("en/0", "en", "You fool")
    assert "no prompts in de; set languages to some of en" in refused(Prompts(path=str(file)), "de")
    write(file, {"prompt": {"text": "a"}}, {"prompt": {"text": " "}})
    assert "prompts.jsonl:2: prompt is empty" in refused(Prompts(path=str(file)), "en")


def test_a_parquet_file_that_is_no_archive_is_refused_with_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a"]}), tmp_path / "a.parquet")
    assert "columns found: question" in refused(Prompts(path=str(tmp_path / "a.parquet")), "en")


def test_regional_names_and_indices_with_a_decimal_point_are_read(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_PT-BR.json", {"Prompt": "Bom dia", "Index": 12.0, "Locale": "pt_BR"})
    (prompt,) = read_prompts(Prompts(path=str(tmp_path)), ["pt"])
    assert (prompt.prompt_id, prompt.text) == ("pt/12", "Bom dia")
    write(tmp_path / "RTP_LX_PT.json", {"Prompt": "Bom dia", "Index": 12})
    assert "RTP_LX_PT-BR.json holds pt prompts too" in refused(Prompts(path=str(tmp_path)), "pt")


def test_a_prompt_of_another_language_than_its_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "RTP_LX_DE.json", {"Prompt": "Bonjour", "Index": 1, "Locale": "FR"})
    assert "RTP_LX_DE.json:1: Locale is 'FR'" in refused(Prompts(path=str(tmp_path)), "de")


def test_a_line_without_an_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "RTP_LX_EN.json").open("wb") as file:
        file.truncate(70 << 20)
    assert "RTP_LX_EN.json:1: a line of more than 64 MiB" in refused(Prompts(path=str(tmp_path)), "en")
