"""Files of a run, on a local disk or behind any URI that ``pyarrow.fs`` knows (``s3://``, ``gs://`` ...).

Every file is written whole or not at all: locally through a temporary file, ``fsync`` and rename; S3 and Google Cloud
Storage make an object visible only when its upload is complete; on Azure, where Arrow begins an upload with an empty
blob, it is copied within the store from a temporary name. Tested are local disks, S3 (moto) and Azure (Azurite, a flat
namespace); of other file systems, HDFS for one, that is not promised. What fails for the moment is tried again; what
cannot come right by itself (no space, no permission, no such bucket) is raised at once.

A URI carries its file system's options as ``pyarrow.fs`` reads them (``s3://bucket/runs?region=eu-west-1``), and no
credentials: those come from the environment. On Azure it is ``abfs://container@account.dfs.core.windows.net/runs``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from xgray.errors import InputError, StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.dataset import FileSystemDataset
    from pyarrow.fs import FileSystem


TEMPORARY_MARK = ".tmp-"
"""Part of the name of a file that is still being written; readers pass it over."""


TRIES, WAIT_SECONDS, MAX_WAIT_SECONDS = 6, 0.2, 5.0
"""Of one read or write; an object store's own client has tried several times before each of them fails."""
READERS = 16
"""Files of one folder that are read at once from an object store, where each costs a round trip."""
COPY_BYTES = 2**24
TRANSIENT_ERRNOS = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)
"""What a local or mounted disk says of trouble that may pass."""
PERMANENT_ERROR = re.compile(
    r"ACCESS_DENIED|NO_SUCH|INVALID|SIGNATURE|CREDENTIAL|EXPIRED|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|NOT_FOUND|ALREADY_(?:EXISTS|OWNED)|HTTP status 4(?!08|29)|is a directory",
)
"""How pyarrow and object stores name, in errors without a number, what does not pass."""
AZURE = ("abfs", "abfss")
AGAIN = "delete it, and the manifest.json of its stage if there is one, and the stage makes its rows again"
"""What to do about a damaged file of rows: a stage that is finished looks at them no more."""
SECRET_OPTION = re.compile(r"key|secret|token|password|sas|credential$", re.IGNORECASE)

T = TypeVar("T")


class DamagedError(Exception):
    """A file is missing, cut off or changed, or is not in the format that is written here."""


def is_transient(error: BaseException) -> bool:
    """Whether a read or a write that failed so may work a little later."""
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    return PERMANENT_ERROR.search(str(error)) is None


def with_retries(call: Callable[[], T]) -> T:
    """What ``call`` returns, tried again with growing pauses while it fails for the moment."""
    import stamina

    for attempt in stamina.retry_context(
        on=is_transient, attempts=TRIES, timeout=None, wait_initial=WAIT_SECONDS, wait_max=MAX_WAIT_SECONDS
    ):
        with attempt:
            return call()
    raise AssertionError  # the last attempt returns or raises


@cache
def _opened(uri: str) -> tuple[FileSystem, str]:
    """The file system behind a URI, and the path in it."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri}: {str(error).splitlines()[0]}; see pyarrow.fs.FileSystem.from_uri") from None


def _upload(filesystem: FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    # No `with`, and all in one write: a stream that is closed, be it by an error, makes an object of what it has got so
    # far.
    stream = filesystem.open_output_stream(path)
    stream.write(content)
    stream.close()


def _copy_in(filesystem: FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Through a temporary name; by a copy, as Arrow moves nothing where the account's namespace is flat."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{TEMPORARY_MARK}{uuid.uuid4().hex}-{name}"
    try:
        _upload(filesystem, temporary, content)
        filesystem.copy_file(temporary, path)
    finally:
        with suppress(OSError):  # What is left behind is passed over, and the write's own error says more.
            filesystem.delete_file(temporary)


class Folder:
    """A folder by local path or URI. Cheap to make, pickles to any worker, touches nothing until asked."""

    def __init__(self, uri: str) -> None:
        """Name a folder.

        Raises:
            InputError: the URI holds credentials, which would be written wherever it is.
        """
        if "://" not in uri:
            self.uri = str(Path(uri).expanduser().absolute())
            return
        base, mark, options = uri.partition("?")
        parts = urlsplit(uri)
        user, at, _ = parts.netloc.rpartition("@")
        # What stands before the @ is the container on Azure, and elsewhere half of a key.
        if (at and (parts.scheme not in AZURE or ":" in user)) or any(
            SECRET_OPTION.search(name) for name, _ in parse_qsl(options)
        ):
            shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise InputError(
                f"{shown}: a URI with credentials would be written into the run's files; leave them out, and give them "
                "in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for one)"
            )
        self.uri = base.rstrip("/") + mark + options

    @classmethod
    def containing(cls, path: str) -> tuple[Folder, str]:
        """The folder that a file given by local path or URI lies in, and the file's name in it."""
        file = cls(path)
        return file.parent, file.name

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        """The folder without its file system's options, as messages name it."""
        return self._split()[0]

    def __truediv__(self, name: str) -> Folder:
        base, options = self._split()
        return Folder(f"{base}/{name}{options}")

    def _split(self) -> tuple[str, str]:
        """The URI, and its options with the question mark before them."""
        if "://" not in self.uri:
            return self.uri, ""
        base, mark, options = self.uri.partition("?")
        return base, mark + options

    @property
    def name(self) -> str:
        return self._split()[0].rsplit("/", 1)[-1]

    @property
    def parent(self) -> Folder:
        base, options = self._split()
        return Folder(f"{base.rsplit('/', 1)[0]}{options}" if "://" in base else str(Path(base).parent))

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None where it lies behind a URI."""
        if self.uri.startswith("file://"):
            return Path(self.uri.removeprefix("file://"))
        return None if "://" in self.uri else Path(self.uri)

    def _resolve(self, name: str) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        local = self.local
        if local is not None:
            return LocalFileSystem(), str(local / name if name else local)
        filesystem, path = with_retries(lambda: _opened(self.uri))
        return filesystem, f"{path}/{name}" if name else path

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        filesystem, path = self._resolve(name)
        return with_retries(lambda: filesystem.get_file_info(path)).type != FileType.NotFound

    def names(self, suffix: str = "") -> list[str]:
        """Names of the finished files and folders in this folder, sorted; empty where there is no such folder."""
        from pyarrow.fs import FileSelector

        filesystem, path = self._resolve("")
        infos = []
        with suppress(FileNotFoundError):  # Raised all the same where the folder is being made this moment.
            infos = with_retries(lambda: filesystem.get_file_info(FileSelector(path, allow_not_found=True)))
        return sorted(
            info.base_name for info in infos if info.base_name.endswith(suffix) and TEMPORARY_MARK not in info.base_name
        )

    def read_bytes(self, name: str) -> bytes:
        filesystem, path = self._resolve(name)

        def read() -> bytes:
            with filesystem.open_input_stream(path) as stream:
                content: bytes = stream.read()
            return content

        return with_retries(read)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all; its folder is made where it is missing."""
        with_retries(lambda: self._write(name, content))

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        filesystem, path = self._resolve(name)
        if self.local is None:
            if self.uri.partition("://")[0] in AZURE:
                _copy_in(filesystem, path, content)
            else:
                _upload(filesystem, path, content)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY_MARK}{uuid.uuid4().hex}-{target.name}")
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def move_in(self, name: str, source: Path) -> None:
        """Move a local file in, whole or not at all. Into a local folder it is renamed, so it must lie on its disk."""
        import pyarrow as pa

        local = self.local
        if local is not None:
            target = local / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as stream:
                os.fsync(stream.fileno())
            source.replace(target)
            return
        content = pa.memory_map(str(source)).read_buffer() if source.stat().st_size else b""
        with_retries(lambda: self._write(name, content))
        source.unlink()

    def fetch(self, name: str, target: Path) -> None:
        """Copy one file to a local path, which is whole when this returns."""
        filesystem, path = self._resolve(name)
        target.parent.mkdir(parents=True, exist_ok=True)

        def read() -> None:
            with filesystem.open_input_stream(path) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, COPY_BYTES)

        with_retries(read)

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, text.encode() + b"\n")

    def write_parquet(self, name: str, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """One Parquet file, to be read in parts."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        local = self.local
        return pq.ParquetFile(str(local / name) if local is not None else pa.BufferReader(self.read_bytes(name)))

    def read_parquet(self, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """All finished Parquet files of this folder as one table; an empty table where there are none.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa

        names = self.names(".parquet")
        if self.local is not None:
            tables = [self.read_table(name, columns) for name in names]
        else:
            with ThreadPoolExecutor(READERS) as pool:
                tables = list(pool.map(lambda name: self.read_table(name, columns), names))
        if tables:
            return pa.concat_tables(tables)
        fields = [schema.field(column) for column in columns] if columns else schema
        return pa.schema(fields).empty_table()

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file.

        Raises:
            StageError: it is damaged; ours are written whole, so something else has cut it.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        local = self.local
        source = str(local / name) if local is not None else pa.BufferReader(self.read_bytes(name))
        try:
            return pq.read_table(source, columns=columns)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            reason = str(error).splitlines()[0]
            raise StageError(f"{self / name} is damaged ({reason}); {AGAIN}") from None

    def count_rows(self) -> int:
        """Rows in all finished Parquet files of this folder, from their footers.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa

        with self._damage_named():
            return with_retries(self._dataset(pa.schema([])).count_rows)

    def scan(self, schema: pa.Schema, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """These columns of all finished Parquet files of this folder, part by part: few of them are held at once.

        Raises:
            StageError: a file is damaged.
        """
        with self._damage_named():
            yield from self._dataset(schema).to_batches(columns=columns)

    def _dataset(self, schema: pa.Schema) -> FileSystemDataset:
        import pyarrow.dataset as ds

        filesystem, path = self._resolve("")
        files = [f"{path}/{name}" for name in self.names(".parquet")]
        return ds.FileSystemDataset.from_paths(
            files, schema=schema, format=ds.ParquetFileFormat(), filesystem=filesystem
        )

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except pa.ArrowInvalid as error:
            raise StageError(f"{self}: a file is damaged: {str(error).splitlines()[0]}; {AGAIN}") from None

    def remove(self, name: str) -> None:
        """Delete one file, if it is there."""
        filesystem, path = self._resolve(name)
        with suppress(FileNotFoundError):
            with_retries(lambda: filesystem.delete_file(path))

    def clear(self, kept: str) -> None:
        """Delete all in this folder but one file."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self._resolve("")
        for info in with_retries(lambda: filesystem.get_file_info(FileSelector(path))):
            if info.type == FileType.Directory:
                (self / info.base_name).delete()
            elif info.base_name != kept:
                self.remove(info.base_name)

    def delete(self) -> None:
        """Delete the folder and all in it, if it is there."""
        filesystem, path = self._resolve("")
        if self.exists(""):
            with_retries(lambda: filesystem.delete_dir(path))
