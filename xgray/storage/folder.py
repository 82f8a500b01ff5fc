"""Files of a run, on a local disk or behind any URI that ``pyarrow.fs`` knows (``s3://``, ``gs://`` ...).

Every file is written whole or not at all:

- on a local disk through a temporary file, ``fsync`` and rename;
- on S3 and Google Cloud Storage an object becomes visible only when its upload is complete;
- on Azure, where Arrow begins an upload with an empty blob, through a temporary name and a copy within the store.

Local disks, S3 (moto) and Azure (Azurite, flat namespace) are tested; other file systems, such as HDFS, may show files
that are half written. Transient errors are retried; permanent ones (no space, no permission, no such bucket) are raised
at once.

A URI carries the options of its file system as ``pyarrow.fs`` reads them (``s3://bucket/runs?region=eu-west-1``), and
no credentials: those come from the environment. A URI on Azure is
``abfs://container@account.dfs.core.windows.net/runs``.
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
from xgray.storage.parse import check_regular, parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.dataset import FileSystemDataset
    from pyarrow.fs import FileSystem


TEMPORARY_MARK = ".tmp-"
"""Part of the name of a file that is still being written; readers ignore such files."""
TRIES, WAIT_SECONDS, MAX_WAIT_SECONDS = 6, 0.2, 5.0
"""Retries per read or write, on top of those of an object store's client."""
TRANSIENT_ERRNOS = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET)
"""Errno values of transient errors of a local or mounted disk."""
PERMANENT_ERROR = re.compile(
    r"ACCESS_DENIED|NO_SUCH|INVALID|SIGNATURE|CREDENTIAL|EXPIRED|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|NOT_FOUND|ALREADY_(?:EXISTS|OWNED)|HTTP status 4(?!08|29)|is a directory",
)
"""Matches messages of permanent errors that carry no errno, from pyarrow and object stores."""
NUM_READERS = 16
"""Files of one folder that are read at once from an object store, where each costs a round trip."""
COPY_BYTES = 2**24
"""Bytes that are copied at a time from an object store to a local file."""
AZURE_SCHEMES = ("abfs", "abfss")
SECRET_OPTION = re.compile(r"key|secret|token|password|sas|credential$", re.IGNORECASE)
REMAKE_ROWS = (
    "delete it, and the manifest.json of its stage if there is one; the same command then makes the rows again"
)
"""What to do about a damaged file of rows. A finished stage does not read its rows, so its manifest has to go too."""

T = TypeVar("T")


class DamagedError(Exception):
    """A file is missing, cut off or changed, or is not in the format that is written here."""


def is_transient(error: BaseException) -> bool:
    """Return whether a read or write that failed with this error may succeed when it is tried again."""
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in TRANSIENT_ERRNOS
    return PERMANENT_ERROR.search(str(error)) is None


def with_retries(call: Callable[[], T]) -> T:
    """Return what ``call`` returns; retry it after transient errors, with growing pauses."""
    import stamina

    for attempt in stamina.retry_context(
        on=is_transient, attempts=TRIES, timeout=None, wait_initial=WAIT_SECONDS, wait_max=MAX_WAIT_SECONDS
    ):
        with attempt:
            return call()
    raise AssertionError  # the last attempt returns or raises


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let an error of the disk that names no file, such as a full one, name this file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``, and rename it to ``target`` when the block has written it.

    The block writes a file or makes a folder at that path. If it fails, what it has written is deleted, and ``target``
    stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_MARK}{uuid.uuid4().hex}-{target.name}")
    try:
        with naming_file(target):
            yield temporary
        temporary.replace(target)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


@cache
def _open_file_system(uri: str) -> tuple[FileSystem, str]:
    """Return the file system behind a URI, and the path in it."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri}: {str(error).splitlines()[0]}; see pyarrow.fs.FileSystem.from_uri") from None


def _upload(filesystem: FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    # A single write, and no `with`: a stream that is closed after an error makes an object of what it has got so far.
    stream = filesystem.open_output_stream(path)
    stream.write(content)
    stream.close()


def _upload_and_copy(filesystem: FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    """Upload to a temporary name and copy, as Arrow cannot move blobs in an account with a flat namespace."""
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{TEMPORARY_MARK}{uuid.uuid4().hex}-{name}"
    try:
        _upload(filesystem, temporary, content)
        filesystem.copy_file(temporary, path)
    finally:
        with suppress(OSError):  # Readers ignore a temporary file, and the error of the write says more.
            filesystem.delete_file(temporary)


@contextmanager
def _naming_damage(folder: Folder, what: str = "") -> Iterator[None]:
    """Turn pyarrow's error about a damaged file into a StageError: of this file, or of ``what`` in this folder."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # An error of the disk has a number, and one of an object store comes from a remote folder.
        if isinstance(error, OSError) and (error.errno is not None or folder.local is None):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StageError(f"{folder}{what} is damaged ({reason}); {REMAKE_ROWS}") from None


def _kind(type_: pa.DataType) -> str:
    """Return the kind of a column's values: ``string``, ``list``, ``number``, ..."""
    kind = re.sub(r"^large_|_view|[0-9<(\[].*", "", str(type_))
    return "number" if kind in ("int", "uint", "float", "double", "halffloat") else kind


class Folder:
    """A folder, by local path or URI. It pickles to any worker, and making one touches no file.

    Args:
        uri: A local path, absolute or not (``~`` is the home folder), or a URI.

    Raises:
        InputError: the URI holds credentials, which would be written into the run's files.
    """

    def __init__(self, uri: str) -> None:
        if "://" not in uri:
            self.uri = str(Path(uri).expanduser().absolute())
            return
        base, mark, options = uri.partition("?")
        parts = urlsplit(uri)
        user, at, _ = parts.netloc.rpartition("@")
        # On Azure the container stands before the @, elsewhere half of a key.
        has_credentials = bool(at) and (parts.scheme not in AZURE_SCHEMES or ":" in user)
        if has_credentials or any(SECRET_OPTION.search(name) for name, _ in parse_qsl(options)):
            without = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise InputError(
                f"{without}: this URI holds credentials, which would be written into the run's files. Leave them out "
                "and set them in the environment, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            raise InputError(
                f"{uri}: a file URI has an absolute path, as in file:///home/me/runs; or write a plain path"
            )
        self.uri = base.rstrip("/") + mark + options

    @classmethod
    def containing(cls, path: str) -> tuple[Folder, str]:
        """Return the folder of a file, given by local path or URI, and the file's name in it."""
        file = cls(path)
        return file.parent, file.name

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        """Return the URI without the options of its file system, for messages."""
        return self._split()[0]

    def __truediv__(self, name: str) -> Folder:
        base, options = self._split()
        return Folder(f"{base}/{name}{options}")

    def _split(self) -> tuple[str, str]:
        """Return the URI, and its options with the question mark before them."""
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
        """The folder as a local path; None if it is behind a URI."""
        if self.uri.startswith("file://"):
            return Path(self.uri.removeprefix("file://"))
        return None if "://" in self.uri else Path(self.uri)

    def _resolve(self, name: str) -> tuple[FileSystem, str]:
        """Return the file system of this folder, and the path in it of one of its files."""
        from pyarrow.fs import LocalFileSystem

        local = self.local
        if local is not None:
            return LocalFileSystem(), str(local / name if name else local)
        filesystem, path = with_retries(lambda: _open_file_system(self.uri))
        return filesystem, f"{path}/{name}" if name else path

    def exists(self, name: str) -> bool:
        """Return whether there is a file or folder of this name; of this folder itself for an empty name."""
        from pyarrow.fs import FileType

        filesystem, path = self._resolve(name)
        return with_retries(lambda: filesystem.get_file_info(path)).type != FileType.NotFound

    def names(self, suffix: str = "") -> list[str]:
        """Return the names of the finished files and folders in this folder, sorted; none if it does not exist."""
        from pyarrow.fs import FileSelector

        filesystem, path = self._resolve("")
        infos = []
        with suppress(FileNotFoundError):  # Raised in spite of allow_not_found while another process makes the folder.
            infos = with_retries(lambda: filesystem.get_file_info(FileSelector(path, allow_not_found=True)))
        return sorted(
            info.base_name for info in infos if info.base_name.endswith(suffix) and TEMPORARY_MARK not in info.base_name
        )

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            InputError: it is a device or a pipe.
        """
        filesystem, path = self._resolve(name)
        if self.local is not None:
            check_regular(Path(path))

        def read() -> bytes:
            with filesystem.open_input_stream(path) as stream:
                content: bytes = stream.read()
            return content

        return with_retries(read)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all; make its folder if it does not exist."""
        with_retries(lambda: self._write(name, content))

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        filesystem, path = self._resolve(name)
        if self.local is not None:
            with write_aside(Path(path)) as temporary, temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        elif self.uri.partition("://")[0] in AZURE_SCHEMES:
            _upload_and_copy(filesystem, path, content)
        else:
            _upload(filesystem, path, content)

    def move_in(self, name: str, source: Path) -> None:
        """Move a local file into this folder, whole or not at all.

        Into a local folder it is renamed, so ``source`` must lie on the same disk.
        """
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
        """Copy one file to a local path, which is complete when this returns."""
        filesystem, path = self._resolve(name)
        target.parent.mkdir(parents=True, exist_ok=True)

        def read() -> None:
            with filesystem.open_input_stream(path) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, COPY_BYTES)

        with_retries(read)

    def read_json(self, name: str) -> Any:
        """Return the value of a JSON file.

        Raises:
            ValueError: it is no JSON.
        """
        return parse_json(self.read_bytes(name))

    def read_mapping(self, name: str) -> Any:
        """Return the content of a JSON file that a stage has written, which is a mapping.

        Raises:
            StageError: the file is damaged.
        """
        try:
            value = self.read_json(name)
        except ValueError as error:
            reason = str(error).splitlines()[0]
        else:
            if isinstance(value, dict):
                return value
            reason = "no JSON object"
        raise StageError(f"{self / name} is damaged ({reason}). Redo its stage (--force)")

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
        """Open one Parquet file, to read it in parts.

        Raises:
            StageError: the file is damaged.
        """
        import pyarrow.parquet as pq

        with _naming_damage(self / name):
            return pq.ParquetFile(self._parquet_source(name))

    def _parquet_source(self, name: str) -> str | pa.BufferReader:
        import pyarrow as pa

        local = self.local
        if local is None:
            return pa.BufferReader(self.read_bytes(name))
        check_regular(local / name)
        return str(local / name)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file.

        Raises:
            StageError: the file is damaged. Files are written whole, so something else has cut it.
        """
        import pyarrow.parquet as pq

        source = self._parquet_source(name)
        with _naming_damage(self / name):
            return pq.read_table(source, columns=columns)

    def read_parquet(self, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """Read all finished Parquet files of this folder as one table; an empty table if there are none.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa

        names = self.names(".parquet")
        if self.local is not None:
            tables = [self.read_table(name, columns) for name in names]
        else:
            with ThreadPoolExecutor(NUM_READERS) as pool:
                tables = list(pool.map(lambda name: self.read_table(name, columns), names))
        self._check_kinds(tables, schema)
        if any(set(table.schema.names) != set(tables[0].schema.names) for table in tables):
            raise StageError(f"{self}: a file is damaged: it has other columns than the others; {REMAKE_ROWS}")
        wanted = pa.schema([schema.field(column) for column in columns] if columns else schema)
        with _naming_damage(self, ": a file"):
            # Rows that an earlier version wrote may lack fields, such as an attribute of the scores: they become null.
            return pa.concat_tables([wanted.empty_table(), *tables], promote_options="default")

    def _check_kinds(self, tables: list[pa.Table], schema: pa.Schema) -> None:
        """Check that columns hold what they should: texts, numbers or lists.

        Raises:
            StageError: one holds another kind of value.
        """
        known = {field.name: _kind(field.type) for field in schema}
        for table in tables:
            for field in table.schema:
                if _kind(field.type) not in ("null", "dictionary", known.get(field.name, _kind(field.type))):
                    raise StageError(
                        f"{self}: a file is damaged: column {field.name} holds {field.type}, not "
                        f"{known[field.name]}; {REMAKE_ROWS}"
                    )

    def count_rows(self) -> int:
        """Return the number of rows in all finished Parquet files of this folder, from their footers.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa

        with _naming_damage(self, ": a file"):
            return with_retries(self._dataset(pa.schema([])).count_rows)

    def scan(self, schema: pa.Schema, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield these columns of all finished Parquet files of this folder, a few batches in memory at a time.

        Raises:
            StageError: a file is damaged.
        """
        with _naming_damage(self, ": a file"):
            yield from self._dataset(schema).to_batches(columns=columns)

    def _dataset(self, schema: pa.Schema) -> FileSystemDataset:
        import pyarrow.dataset as ds

        filesystem, path = self._resolve("")
        files = [f"{path}/{name}" for name in self.names(".parquet")]
        return ds.FileSystemDataset.from_paths(
            files, schema=schema, format=ds.ParquetFileFormat(), filesystem=filesystem
        )

    def remove(self, name: str) -> None:
        """Delete one file, if it exists."""
        filesystem, path = self._resolve(name)
        with suppress(FileNotFoundError):
            with_retries(lambda: filesystem.delete_file(path))

    def clear(self, *kept: str) -> None:
        """Delete everything in this folder except the files and folders named ``kept``."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self._resolve("")
        for info in with_retries(lambda: filesystem.get_file_info(FileSelector(path))):
            if info.base_name in kept:
                continue
            if info.type == FileType.Directory:
                (self / info.base_name).delete()
            else:
                self.remove(info.base_name)

    def delete(self) -> None:
        """Delete the folder and everything in it, if it exists."""
        filesystem, path = self._resolve("")
        if self.exists(""):
            with_retries(lambda: filesystem.delete_dir(path))
