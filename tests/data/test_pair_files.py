"""Pairs come in the files that people and the hub have: shards, splits, folders of languages, compressed lines."""

import gzip
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xgray.data.pairs import load_pairs, pairs_fingerprint, read_pairs
from xgray.errors import InputError


def rows_of(*names: str) -> list[dict[str, str]]:
    return [{"prompt": name, "chosen": " kind", "rejected": " rude"} for name in names]


def write_lines(file: Path, *names: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows_of(*names))
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def write_parquet(file: Path, *names: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows_of(*names)), file)


def prompts(path: Path) -> list[object]:
    return [pair.prompt for pair in read_pairs(str(path))]


def test_of_a_folder_of_the_hub_the_split_of_training_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("# A data set")
    for number, name in enumerate(("a", "b", "c")):
        write_parquet(tmp_path / "data" / f"train-0000{number}-of-00003.parquet", name)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", "of the test")
    with caplog.at_level(logging.INFO):
        assert prompts(tmp_path) == ["a", "b", "c"]
    assert "not test" in caplog.text
    write_lines(tmp_path / "lines.jsonl", "a", "b", "c")
    assert pairs_fingerprint(str(tmp_path / "data")) == pairs_fingerprint(str(tmp_path / "lines.jsonl"))


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("train.jsonl", "test.jsonl", "validation.jsonl"), ["train"]),
        (("train_prefs.jsonl", "train_sft.jsonl", "test_prefs.jsonl"), ["train_prefs"]),
        (("train-00000-of-00001-a09b74b3ef9c3b56.parquet", "test-00000-of-00001-a09b74b3ef9c3b56.parquet"), ["train"]),
        (("test.jsonl",), ["test"]),
        (("train_a.jsonl", "train_b.jsonl"), ["train_a", "train_b"]),
        (("train.jsonl", "mine.jsonl"), ["mine", "train"]),
        (("training.jsonl", "testing.jsonl"), ["testing", "training"]),
    ],
)
def test_splits_are_told_from_other_names(tmp_path: Path, names: tuple[str, ...], read: list[str]) -> None:
    for name in names:
        write = write_parquet if name.endswith(".parquet") else write_lines
        write(tmp_path / name, name.partition(".")[0].partition("-")[0])
    assert prompts(tmp_path) == read


def test_several_splits_of_training_and_missing_shards_are_refused(tmp_path: Path) -> None:
    for name in ("train_small", "train_large", "test"):
        write_lines(tmp_path / "several" / f"{name}.jsonl", name)
    with pytest.raises(InputError, match="train_large, train_small; name the file"):
        read_pairs(str(tmp_path / "several"))
    for number in (0, 3):
        write_parquet(tmp_path / "missing" / f"train-0000{number}-of-00004.parquet", "a")
    with pytest.raises(InputError, match="2 of the 4 files of the split train; missing: 00001, 00002"):
        read_pairs(str(tmp_path / "missing"))


def test_compressed_lines_and_folders_of_languages_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "helpful" / "train.jsonl.gz", "a")
    assert prompts(tmp_path / "helpful") == ["a"]
    with pytest.raises(InputError, match="its folders helpful do: name one of them"):
        read_pairs(str(tmp_path))
    write_parquet(tmp_path / "parts" / "lang=de" / "part-0.parquet", "a")
    write_parquet(tmp_path / "parts" / "lang=fr" / "part-0.parquet", "b")
    pairs = read_pairs(str(tmp_path / "parts"))
    assert [(pair.prompt, pair.language) for pair in pairs] == [("a", "de"), ("b", "fr")]
    write_parquet(tmp_path / "by language" / "data" / "DE-00000-of-00001.parquet", "a")
    assert [pair.language for pair in read_pairs(str(tmp_path / "by language"))] == ["de"]


def test_a_table_that_lacks_a_column_or_has_no_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    table = pa.Table.from_pylist(rows_of("a", "b"))
    pq.write_table(table.drop_columns(["rejected"]), file)
    with pytest.raises(InputError, match="no preference pairs; fields found: prompt, chosen"):
        read_pairs(str(file))
    pq.write_table(table.slice(0, 0), file)
    with pytest.raises(InputError, match="there are no rows"):
        read_pairs(str(file))
    pq.write_table(table.set_column(2, "rejected", pa.array([" rude", None])), file)
    with pytest.raises(InputError, match=r"pairs\.parquet: row 2: .*'rejected'"):
        read_pairs(str(file))


def test_a_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.Table.from_pylist(rows_of("a")).set_column(1, "chosen", broken), file)
    with pytest.raises(InputError, match=r"pairs\.parquet: a text is not UTF-8"):
        read_pairs(str(file))


def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row | {"rejected": " kind"}) + "\n" for row in rows_of("a", "b")))
    write_lines(tmp_path / "others.jsonl", "c")
    assert load_pairs(str(tmp_path)).counts == {"num_equal_left_out": 2}
