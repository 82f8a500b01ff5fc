import json
from pathlib import Path

import pytest

from xgray.data.pairs import pairs_fingerprint, read_pairs
from xgray.errors import InputError
from xgray.rows import PreferencePair


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
    assert "1 of 3 pairs are left out" in caplog.text
    assert "2 completions are chosen in one pair and rejected in another" in caplog.text
    before = pairs_fingerprint(str(file))
    file.write_text(line(0) + line(0, **turned))
    assert pairs_fingerprint(str(file)) == before
    file.write_text(line(1, **same))
    with pytest.raises(InputError, match="equal in all 1 pairs"):
        read_pairs(str(file))


def test_an_empty_continuation_is_a_continuation(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line(0, unpert_gen_text=""))
    assert read_pairs(str(file))[0].chosen == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        (line(0) + "{", "pairs.jsonl:2: broken JSON"),
        (line(0) + '{"prompt_text": "a", "unpert_gen_text": "b"}\n', "pairs.jsonl:2: no field 'pert_gen_text'"),
        (line(0, prompt_text=""), "pairs.jsonl:1: prompt_text is empty"),
        (line(0, pert_gen_text=[1, 2]), "pairs.jsonl:1: pert_gen_text must be text, not [1, 2]"),
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
    with pytest.raises(InputError, match=r"no \*.jsonl files"):
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
    pairs = read_pairs("embedded")
    assert len(pairs) >= 200
    assert all(pair.chosen != pair.rejected and pair.chosen.strip() and pair.rejected.strip() for pair in pairs)
    assert len({pair.prompt for pair in pairs}) == len(pairs)
