import hashlib
import json
from pathlib import Path

import pytest

from xgray.data.pairs import language_counts, pairs_fingerprint, read_pairs
from xgray.errors import InputError
from xgray.rows import Pairs, PreferencePair


def line(number: int, **changes: object) -> str:
    record = {
        "prompt_text": f"prompt {number}",
        "unpert_gen_text": f" kind {number}",
        "pert_gen_text": f" rude {number}",
        "prompt_input_ids": [1, 2],
    }
    return json.dumps({**record, **changes}) + "\n"


def test_unperturbed_text_is_chosen_and_spaces_stay(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line(0))
    assert read_pairs(str(file)) == [PreferencePair("prompt 0", chosen=" kind 0", rejected=" rude 0")]


def test_files_of_a_folder_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(line(2) + line(3))
    (tmp_path / "a.jsonl").write_text(line(0) + line(1))
    (tmp_path / "README.md").write_text("not pairs")
    assert [pair.prompt for pair in read_pairs(str(tmp_path))] == [f"prompt {i}" for i in range(4)]
    assert [pair.prompt for pair in read_pairs(str(tmp_path), limit=3)] == [f"prompt {i}" for i in range(3)]


def test_pairs_without_a_preference_are_left_out_and_contradictions_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pairs.jsonl"
    same, turned = {"pert_gen_text": " kind 1"}, {"unpert_gen_text": " rude 0", "pert_gen_text": " kind 0"}
    file.write_text(line(0) + line(1, **same) + line(0, **turned))
    assert [pair.prompt for pair in read_pairs(str(file))] == ["prompt 0", "prompt 0"]
    assert "1 pairs are left out: chosen and rejected are equal" in caplog.text
    assert "2 completions are chosen in one pair and rejected in another" in caplog.text
    before = pairs_fingerprint(str(file))
    file.write_text(line(0) + line(0, **turned))
    assert pairs_fingerprint(str(file)) == before
    file.write_text(line(1, **same))
    with pytest.raises(InputError, match=r"no preference pair is left; 1 .* equal"):
        read_pairs(str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        (line(0) + "{", "pairs.jsonl:2: broken JSON"),
        (line(0) + '{"prompt_text": "a", "unpert_gen_text": "b"}\n', "pairs.jsonl:2: no field 'pert_gen_text'"),
        (line(0, prompt_text=""), "pairs.jsonl:1: prompt_text is empty"),
        (line(0) + line(1, unpert_gen_text=" \n"), "pairs.jsonl:2: unpert_gen_text is empty"),
        (line(0, pert_gen_text=""), "pairs.jsonl:1: pert_gen_text is empty"),
        (line(0, pert_gen_text="") + line(1, prompt_text=""), "(and 1 more such rows: "),
        (line(0, pert_gen_text=[1, 2]), "pairs.jsonl:1: Expected 'str', got 'array' in 'pert_gen_text'"),
        (line(0, pert_gen_text=None), "pairs.jsonl:1: Expected 'str', got 'null' in 'pert_gen_text'"),
        (line(0, extra="\ud800"), "pairs.jsonl:1: half a surrogate pair"),
        ('{"text": "a", "label": 1}\n', "fields found: text, label"),
    ],
)
def test_broken_file_is_refused_by_line(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=r"pairs\.jsonl") as caught:
        read_pairs(str(file))
    assert expected in str(caught.value)


def test_missing_file_and_folder_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read_pairs(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds no \*.jsonl"):
        read_pairs(str(tmp_path))


def test_fingerprint_follows_the_pairs_and_not_the_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "all.jsonl").write_text(line(0) + line(1) + line(2))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.jsonl").write_text(line(0, extra=1))
    (tmp_path / "two" / "b.jsonl").write_text(line(1))
    assert pairs_fingerprint(str(tmp_path / "one"), limit=2) == pairs_fingerprint(str(tmp_path / "two"))
    assert pairs_fingerprint(str(tmp_path / "one")) != pairs_fingerprint(str(tmp_path / "two"))


def test_embedded_pairs_are_enough_and_differ() -> None:
    pairs = read_pairs("embedded", languages=["en"])
    assert len(pairs) >= 200
    assert all(pair.chosen != pair.rejected and pair.chosen.strip() and pair.rejected.strip() for pair in pairs)
    assert len({pair.prompt for pair in pairs}) == len(pairs)


def german_and_french(folder: Path) -> str:
    """Five German and two French pairs in files named after them, and three rows of a file that say a language."""
    folder.mkdir()
    (folder / "pairs_fr.jsonl").write_text("".join(line(number) for number in range(2)))
    (folder / "de.jsonl").write_text("".join(line(number) for number in range(10, 15)))
    rows = [line(20, language="de"), line(21, Locale="PT-BR"), line(22, language="Klingon"), line(23)]
    (folder / "others.jsonl").write_text("".join(rows))
    return str(folder)


def numbers(pairs: Pairs) -> list[int]:
    """The numbers of pairs made by :func:`line`."""
    return [int(str(pair.prompt).removeprefix("prompt ")) for pair in pairs]


def test_a_row_or_the_name_of_its_file_says_the_language(tmp_path: Path) -> None:
    pairs = read_pairs(german_and_french(tmp_path / "pairs"))
    languages = {number: pair.language for number, pair in zip(numbers(pairs), pairs, strict=True)}
    assert languages == dict.fromkeys((10, 11, 12, 13, 14, 20), "de") | {21: "pt", 22: None, 23: None, 0: "fr", 1: "fr"}
    assert language_counts(pairs) == {"de": 6, "pt": 1, "fr": 2}


def test_pairs_of_some_languages_are_taken_and_a_limit_in_turn(tmp_path: Path) -> None:
    path = german_and_french(tmp_path / "pairs")
    assert numbers(read_pairs(path, languages=["fr", "de"])) == [10, 11, 12, 13, 14, 20, 0, 1]
    assert numbers(read_pairs(path, 3, ["fr", "de"])) == [10, 0, 1], "French is first in turn"
    assert numbers(read_pairs(path, 3, ["de", "fr"])) == [10, 11, 0]
    assert numbers(read_pairs(path, 6, ["de", "fr"])) == [10, 11, 12, 13, 0, 1], "there are only two in French"
    assert numbers(read_pairs(path, 3)) == [10, 11, 12], "without languages the first of all"


def test_a_language_without_pairs_is_refused_with_those_that_have_some(tmp_path: Path) -> None:
    path = german_and_french(tmp_path / "pairs")
    with pytest.raises(InputError, match="no pairs in it, ar; pairs by language: de 6, pt 1, fr 2"):
        read_pairs(path, languages=["de", "it", "ar"])
    file = tmp_path / "mixed.jsonl"
    file.write_text(line(0))
    with pytest.raises(InputError, match="name the files after it"):
        read_pairs(str(file), languages=["de"])


def test_a_row_of_another_language_than_its_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "de.jsonl"
    file.write_text(line(0) + line(1, language="fr"))
    with pytest.raises(InputError, match=r"de\.jsonl:2: language is 'fr'"):
        read_pairs(str(file))


def test_languages_alone_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(line(0) + line(1))
    (tmp_path / "de.jsonl").write_text(line(0) + line(1))
    plain, german = (pairs_fingerprint(str(tmp_path / name)) for name in ("plain.jsonl", "de.jsonl"))
    assert plain == german == pairs_fingerprint(str(tmp_path / "de.jsonl"), languages=["de"])
    # As version 1 of the stage has recorded it.
    texts = [["prompt 0", " kind 0", " rude 0"], ["prompt 1", " kind 1", " rude 1"]]
    canonical = json.dumps({"pairs": texts}, separators=(",", ":"))
    assert plain == hashlib.sha256(canonical.encode()).hexdigest()
