"""Files of a run, on a local disk or behind any URI that ``pyarrow.fs`` knows (``s3://``, ``gs://`` ...).

Every file is written whole or not at all: locally through a temporary file, ``fsync`` and rename; an object store
makes an object visible only when its upload is complete.
"""

from __future__ import annotations

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgray.errors import StageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.fs import FileSystem

TEMPORARY_MARK = ".tmp-"
"""Part of the name of a file that is still being written; readers pass it over."""


class Folder:
    """A folder by local path or URI. Cheap to make, pickles to any worker, touches nothing until asked."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).absolute())

    @classmethod
    def of(cls, path: str) -> tuple[Folder, str]:
        """The folder that a file given by local path or URI lies in, and the file's name in it."""
        if "://" in path:
            folder, _, name = path.rpartition("/")
            return cls(folder), name
        local = Path(path).expanduser()
        return cls(str(local.parent)), local.name

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        return self.uri.rsplit("/", 1)[-1]

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None where it lies behind a URI."""
        if self.uri.startswith("file://"):
            return Path(self.uri.removeprefix("file://"))
        return None if "://" in self.uri else Path(self.uri)

    def _resolve(self, name: str) -> tuple[FileSystem, str]:
        from pyarrow.fs import FileSystem, LocalFileSystem

        local = self.local
        if local is not None:
            return LocalFileSystem(), str(local / name if name else local)
        filesystem, path = FileSystem.from_uri(self.uri)
        return filesystem, f"{path}/{name}" if name else path

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        filesystem, path = self._resolve(name)
        return filesystem.get_file_info(path).type != FileType.NotFound

    def names(self, suffix: str = "") -> list[str]:
        """Names of the finished files and folders in this folder, sorted; empty where there is no such folder."""
        from pyarrow.fs import FileSelector

        filesystem, path = self._resolve("")
        infos = []
        with suppress(FileNotFoundError):  # Raised all the same where the folder is being made this moment.
            infos = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return sorted(
            info.base_name for info in infos if info.base_name.endswith(suffix) and TEMPORARY_MARK not in info.base_name
        )

    def read_bytes(self, name: str) -> bytes:
        filesystem, path = self._resolve(name)
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write one file, whole or not at all; its folder is made where it is missing."""
        filesystem, path = self._resolve(name)
        if self.local is None:
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
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
        import pyarrow.parquet as pq

        filesystem, path = self._resolve(name)
        return pq.ParquetFile(filesystem.open_input_file(path))

    def read_parquet(self, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """All finished Parquet files of this folder as one table; an empty table where there are none.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa

        tables = [self.read_table(name, columns) for name in self.names(".parquet")]
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

        filesystem, path = self._resolve(name)
        try:
            return pq.read_table(path, filesystem=filesystem, columns=columns)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            reason = str(error).splitlines()[0]
            raise StageError(
                f"{self.uri}/{name} is damaged ({reason}); delete it, and the same command makes its rows again"
            ) from None

    def count_rows(self) -> int:
        """Rows in all finished Parquet files of this folder, from their footers.

        Raises:
            StageError: a file is damaged.
        """
        import pyarrow as pa
        import pyarrow.dataset as ds

        if not (names := self.names(".parquet")):
            return 0
        filesystem, path = self._resolve("")
        try:
            files = [f"{path}/{name}" for name in names]
            return ds.FileSystemDataset.from_paths(
                files, schema=pa.schema([]), format=ds.ParquetFileFormat(), filesystem=filesystem
            ).count_rows()
        except pa.ArrowInvalid as error:
            raise StageError(f"{self.uri}: a file is damaged: {str(error).splitlines()[0]}; delete it") from None

    def modified(self) -> tuple[float, float] | None:
        """When the oldest and the newest file below this folder was written, in seconds since the epoch."""
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self._resolve("")
        infos = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        times = [info.mtime_ns / 1e9 for info in infos if info.type == FileType.File and info.mtime_ns]
        return (min(times), max(times)) if times else None

    def remove(self, name: str) -> None:
        """Delete one file, if it is there."""
        filesystem, path = self._resolve(name)
        with suppress(FileNotFoundError):
            filesystem.delete_file(path)

    def delete(self) -> None:
        """Delete the folder and all in it, if it is there."""
        filesystem, path = self._resolve("")
        if self.exists(""):
            filesystem.delete_dir(path)
