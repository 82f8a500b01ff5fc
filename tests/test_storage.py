import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from xgray.rows import Completions, schema, to_table
from xgray.storage import TEMPORARY_MARK, Folder


def row(prompt_id: str) -> Completions:
    return Completions(prompt_id, "en", "base", "p", ["x"], [1], ["stop"])


def test_files_are_written_read_listed_and_deleted(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path)) / "run" / "generate"
    assert folder.names() == []
    assert not folder.exists("a.json")
    folder.write_json("a.json", {"ä": [1, None]})
    folder.write_bytes("b.txt", b"b")
    assert folder.read_json("a.json") == {"ä": [1, None]}
    assert folder.names() == ["a.json", "b.txt"]
    assert folder.names(".json") == ["a.json"]
    assert (Folder(str(tmp_path)) / "run").names() == ["generate"]
    folder.delete()
    assert folder.names() == []
    folder.delete()


def test_a_files_path_is_its_folder_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a.json", "./a.json", str(tmp_path / "a.json"), f"file://{tmp_path}/a.json"):
        folder, name = Folder.of(path)
        assert name == "a.json"
        assert folder.local == tmp_path
    assert Folder.of("s3://bucket/b/a.json")[0].uri == "s3://bucket/b"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("a", b"a longer first content")
    folder.write_bytes("a", b"short")
    assert folder.read_bytes("a") == b"short"


def test_unfinished_files_are_passed_over(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_parquet("a.parquet", to_table([row("en/1")], Completions))
    (tmp_path / f"{TEMPORARY_MARK}0-b.parquet").write_bytes(b"half a fi")
    assert folder.names() == ["a.parquet"]
    assert folder.read_parquet(schema(Completions)).num_rows == 1


@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    """The disk is full after 64 KiB, for a process that may write no larger files."""
    folder = Folder(str(tmp_path))
    if existing:
        folder.write_bytes("big", b"before")
    code = (
        "import resource, sys; from xgray.storage import Folder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: Folder(sys.argv[1]).write_bytes('big', bytes(200_000))\n"
        "except OSError as error: sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60).returncode == 3
    assert os.listdir(tmp_path) == (["big"] if existing else [])
    if existing:
        assert folder.read_bytes("big") == b"before"


def test_a_killed_writer_leaves_no_file_of_the_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from xgray.storage import Folder\n"
        "os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Folder(sys.argv[1]).write_bytes('a.parquet', b'content')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    assert Folder(str(tmp_path)).names() == []


def test_file_uri_is_the_local_folder(tmp_path: Path) -> None:
    folder = Folder(tmp_path.as_uri()) / "sub"
    folder.write_bytes("a", b"a")
    assert (tmp_path / "sub" / "a").read_bytes() == b"a"
    assert folder.names() == ["a"]
    assert folder.read_bytes("a") == b"a"
    assert folder.local == tmp_path / "sub"
    assert folder.name == "sub"


def test_a_remote_folder_is_no_local_path() -> None:
    folder = Folder("s3://bucket/runs/") / "mine"
    assert folder.uri == "s3://bucket/runs/mine"
    assert folder.local is None


def test_relative_path_stays_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder("runs")
    monkeypatch.chdir("/")
    folder.write_bytes("a", b"a")
    assert (tmp_path / "runs" / "a").exists()
    assert pickle.loads(pickle.dumps(folder)).uri == str(tmp_path / "runs")


def test_parquet_files_of_a_folder_are_one_table(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    empty = folder.read_parquet(schema(Completions))
    assert empty.num_rows == 0
    assert empty.schema == schema(Completions)
    folder.write_parquet("b.parquet", to_table([row("en/2")], Completions))
    folder.write_parquet("a.parquet", to_table([row("en/1"), row("en/3")], Completions))
    table = folder.read_parquet(schema(Completions), columns=["prompt_id"])
    assert table == pa.table({"prompt_id": ["en/1", "en/3", "en/2"]})
    assert folder.read_parquet(schema(Completions)).schema == schema(Completions)


def test_json_with_a_non_finite_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Folder(str(tmp_path)).write_json("a.json", {"emt": math.nan})
    assert os.listdir(tmp_path) == []
