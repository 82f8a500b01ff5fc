import contextlib
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow.fs import AzureFileSystem, FileSelector

from tests.object_store import CREDENTIALS, ObjectStore, object_store
from xgray.errors import InputError, StageError
from xgray.rows import Completions, schema, to_table
from xgray.storage.folder import TEMPORARY_MARK, Folder, with_retries


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


def test_a_path_is_split_into_folder_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("a.json", "./a.json", str(tmp_path / "a.json"), f"file://{tmp_path}/a.json"):
        folder, name = Folder.containing(path)
        assert name == "a.json"
        assert folder.local == tmp_path
    assert Folder.containing("s3://bucket/b/a.json")[0].uri == "s3://bucket/b"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("a", b"a longer first content")
    folder.write_bytes("a", b"short")
    assert folder.read_bytes("a") == b"short"


def test_unfinished_files_are_ignored(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_parquet("a.parquet", to_table([row("en/1")], Completions))
    (tmp_path / f"{TEMPORARY_MARK}0-b.parquet").write_bytes(b"half a fi")
    assert folder.names() == ["a.parquet"]
    assert folder.read_parquet(schema(Completions)).num_rows == 1


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, existing: bool) -> None:
    """The disk is full after 64 KiB, for a process that may write no larger files."""
    folder = Folder(str(tmp_path))
    if existing:
        folder.write_bytes("big", b"before")
    code = (
        "import resource, sys; from xgray.storage.folder import Folder\n"
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
        "import os, signal, sys; from xgray.storage.folder import Folder\n"
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


def test_a_remote_folder_has_no_local_path() -> None:
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


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder("~/runs").local == tmp_path / "runs"
    assert (Folder("~") / "~").local == tmp_path / "~"
    assert Folder.containing("~/a/b.json")[0].local == tmp_path / "a"
    assert Folder("s3://bucket/~/runs").uri == "s3://bucket/~/runs"


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


@pytest.fixture(scope="module")
def store():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with object_store() as server:
            yield server


def test_an_object_store_behaves_like_a_local_folder(store: ObjectStore, tmp_path: Path) -> None:
    run = Folder(store.uri("/like-any-other"))
    rows = run / "generate" / "rows"
    assert (rows.parent.name, rows.parent.parent.uri) == ("generate", run.uri)
    assert str(rows) == "s3://bucket/like-any-other/generate/rows"
    assert rows.names() == []
    rows.write_parquet("a.parquet", to_table([row("en/1"), row("en/2")], Completions))
    rows.write_parquet("b.parquet", to_table([row("en/3")], Completions))
    assert rows.read_parquet(schema(Completions), ["prompt_id"])["prompt_id"].to_pylist() == ["en/1", "en/2", "en/3"]
    for size in (0, 12_000_000):
        (tmp_path / "file").write_bytes(b"x" * size)
        run.move_in("sub/file", tmp_path / "file")
        assert not (tmp_path / "file").exists()
        run.fetch("sub/file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"x" * size
    (run / "sub").delete()
    rows.write_bytes("a.parquet", b"nonsense")
    with pytest.raises(StageError, match=r"s3://bucket/like-any-other/generate/rows/a\.parquet is damaged"):
        rows.read_parquet(schema(Completions))
    assert pickle.loads(pickle.dumps(run)).names() == ["generate"]
    run.delete()
    assert not rows.exists("a.parquet")
    with pytest.raises(FileNotFoundError):
        rows.read_bytes("a.parquet")


@pytest.mark.parametrize("tries", [1, 5])
def test_every_tenth_read_and_write_may_fail(store: ObjectStore, tries: int) -> None:
    """The AWS SDK retries some requests by itself, but not all; five faults in a row are too many for it."""
    folder = Folder(store.uri(f"/faults-{tries}"))
    store.fail(every=10, tries=tries)
    for number in range(12):
        folder.write_bytes(str(number), b"%d" % number)
    assert [folder.read_bytes(str(number)) for number in range(12)] == [b"%d" % number for number in range(12)]
    assert store.fail(every=10**9) >= 2 * tries


def test_an_upload_that_breaks_off_leaves_no_object(store: ObjectStore) -> None:
    uri = store.uri("/broken")
    code = (
        "import os, sys, threading, time; from xgray.storage.folder import Folder\n"
        "threading.Thread(target=lambda: (time.sleep(1.5), os._exit(9)), daemon=True).start()\n"
        "Folder(sys.argv[1]).write_bytes('big', bytes(30_000_000))\n"
    )
    store.fail(every=2, methods=("PUT",), tries=10**9)
    assert subprocess.run([sys.executable, "-c", code, uri], check=False, timeout=60).returncode == 9
    assert store.fail(every=10**9) > 0
    assert not Folder(uri).exists("big")


def test_permanent_errors_are_raised_at_once(store: ObjectStore, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Folder(store.uri("/x", bucket="none")).write_bytes("a", b"a")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):
        Folder(str(tmp_path / "file")).write_bytes("a", b"a")
    assert time.monotonic() - began < 5
    with pytest.raises(InputError, match=r"foo://x.*Unrecognized filesystem"):
        Folder("foo://x").names()


def test_an_azure_container_is_not_a_credential() -> None:
    for scheme in ("abfs", "abfss"):
        runs = Folder(f"{scheme}://bucket@account.dfs.core.windows.net/x")
        assert (runs / "mine").uri == f"{scheme}://bucket@account.dfs.core.windows.net/x/mine"
        assert runs._resolve("a")[1] == "bucket/x/a"
    with pytest.raises(InputError, match="credentials") as raised:
        Folder("abfs://bucket:hush@account.dfs.core.windows.net/x")
    assert "hush" not in str(raised.value)


AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The key of every Azurite."""


@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="needs Azurite: npm install --global azurite")
def test_a_blob_on_azure_is_never_seen_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    authorities = {
        "blob_storage_authority": where,
        "blob_storage_scheme": "http",
        "dfs_storage_authority": where,
        "dfs_storage_scheme": "http",
    }
    azure = AzureFileSystem(account_name="devstoreaccount1", account_key=AZURITE_KEY, **authorities)
    # Credentials come from the environment, which has no way to name Azurite's.
    monkeypatch.setattr("xgray.storage.folder._open_file_system", lambda uri: (azure, "container/runs"))
    command = ["azurite-blob", "--location", str(tmp_path), "--blobPort", where.rpartition(":")[2]]
    server = subprocess.Popen([*command, "--skipApiVersionCheck"], stdout=subprocess.DEVNULL)
    try:
        with_retries(lambda: azure.create_dir("container"))
        runs = Folder("abfs://container@account.dfs.core.windows.net/runs")
        content, seen, stop = bytes(8_000_000), set(), threading.Event()

        def look() -> None:
            while not stop.is_set():
                with contextlib.suppress(FileNotFoundError):
                    seen.add(len(runs.read_bytes("a")))

        reader = threading.Thread(target=look)
        reader.start()
        for _ in range(10):
            runs.write_bytes("a", content)
        stop.set()
        reader.join()
        assert seen == {len(content)}
        assert [info.base_name for info in azure.get_file_info(FileSelector("container/runs"))] == ["a"]
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("uri", ["s3://name:hush@bucket/x", "s3://bucket/x?region=r&secret_key=hush"])
def test_a_uri_with_credentials_is_refused_without_showing_them(uri: str) -> None:
    with pytest.raises(InputError, match="credentials") as raised:
        Folder(uri)
    assert "hush" not in str(raised.value)
    assert "s3://bucket/x" in str(raised.value)


@pytest.mark.parametrize(
    "columns",
    [{"prompt_id": [1], "text": ["a"]}, {"prompt_id": [["a"]], "text": ["a"]}, {"prompt_id": ["a"]}, {"x": ["a"]}],
)
def test_rows_of_another_kind_are_damage_that_names_the_folder(
    tmp_path: Path, columns: dict[str, list[object]]
) -> None:
    schema = pa.schema([("prompt_id", pa.string()), ("text", pa.string())])
    folder = Folder(str(tmp_path))
    folder.write_parquet("a.parquet", pa.table({"prompt_id": ["a"], "text": ["a"]}))
    folder.write_parquet("b.parquet", pa.table(columns))
    with pytest.raises(StageError, match=rf"{tmp_path}.*damaged"):
        folder.read_parquet(schema)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a":' * 3000], ids=["empty", "list", "cut", "no text", "deep"]
)
def test_what_a_stage_wrote_is_a_mapping_or_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(StageError, match=rf"{tmp_path}/metrics.json is damaged .*--force"):
        Folder(str(tmp_path)).read_mapping("metrics.json")


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="not a regular file"):
        Folder(str(tmp_path)).read_bytes("metrics.json")
