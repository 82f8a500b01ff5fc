"""The files of a score store: immutable, sorted by key, and searched without being read.

A row is a key of 16 bytes and a value. A segment is an Arrow IPC file with one uncompressed record batch of four
columns: the two halves of the key as 64-bit integers, in which a binary search reads a few places only; a CRC-32 of
each row; and the values. The file is named after the SHA-256 of its content. A local segment is memory-mapped. A
remote one is copied once into the cache, where it cannot become outdated.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgray.models.cache import cache_folder
from xgray.score.store.entry import KEY_BYTES
from xgray.storage.folder import DamagedError, Folder

if TYPE_CHECKING:
    import pyarrow as pa


SUFFIX = ".arrow"
NAME_DIGITS = 32
MERGE_AT = 32
"""A writer merges its segments of about one size when it has written so many of them."""
COMMIT_BYTES = 2**25
"""Size limit of one commit, and of segments that are merged while a store is written. Both hold their rows in memory,
in about five times this size, so that an archive of any size is imported in the same memory."""
SEGMENT_BYTES = 2**28
"""Size limit of segments that are merged when the user asks for it: about a million rows of short texts."""
ROWS_PER_READ = 4096
MAGIC = b"ARROW1\0\0"
"""How an Arrow IPC file begins."""


def segment_name(content: bytes) -> str:
    """Return the file name of a segment with this content."""
    return hashlib.sha256(content).hexdigest()[:NAME_DIGITS] + SUFFIX


def key_columns(keys: Collection[bytes]) -> np.ndarray:
    """Return ``(n, 2)`` uint64, the high and the low half of each key; they sort as the keys do."""
    return np.frombuffer(b"".join(keys), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def write_segment(folder: Folder, rows: Collection[bytes]) -> str:
    """Write distinct rows, at least one, as one segment, whole or not at all, and return its name.

    The same rows give the same file.
    """
    import pyarrow as pa

    ordered = sorted(rows)
    halves = key_columns([row[:KEY_BYTES] for row in ordered])
    columns = [
        pa.array(halves[:, 0]),
        pa.array(halves[:, 1]),
        pa.array([zlib.crc32(row) for row in ordered], pa.uint32()),
        pa.array([row[KEY_BYTES:] for row in ordered], pa.large_binary()),
    ]
    batch = pa.record_batch(columns, schema=_schema())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    name = segment_name(content)
    folder.write_bytes(name, content)
    if folder.local is None:
        _cache().write_bytes(name, content)
    return name


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"key_high": pa.uint64(), "key_low": pa.uint64(), "checksum": pa.uint32(), "value": pa.large_binary()}
    return pa.schema([pa.field(name, type_, nullable=False) for name, type_ in types.items()])


def _read_whole(source: Any) -> pa.RecordBatch:
    """Return the record batch of a segment."""
    import pyarrow as pa

    reader = pa.ipc.open_file(source)
    if reader.schema != _schema() or reader.num_record_batches != 1:
        raise DamagedError("not the columns of a segment")
    batch = reader.get_batch(0)
    batch.validate()
    return batch


def _read_torn(content: pa.Buffer) -> pa.RecordBatch:
    """Return the record batch at the beginning of a file that may have lost its end; zeros stand for what is lost.

    A segment goes: magic bytes, the schema, the batch's description with its size, the batch, a footer.
    """
    import pyarrow as pa

    messages = pa.BufferReader(content.slice(len(MAGIC)))
    if content.slice(0, len(MAGIC)).to_pybytes() != MAGIC or pa.ipc.read_schema(messages) != _schema():
        raise DamagedError("not the columns of a segment")
    start = messages.tell()
    num_bytes = SEGMENT_BYTES + len(content)  # no segment is larger
    padded = bytearray(content.slice(len(MAGIC) + start).to_pybytes())
    padded.extend(bytes(num_bytes - len(padded)))
    return pa.ipc.read_record_batch(pa.ipc.read_message(pa.py_buffer(padded)), _schema())


def _cache() -> Folder:
    return Folder(str(cache_folder() / "scores-cache"))


def forget_cached(name: str) -> None:
    """Delete the cached copy of a remote segment that was deleted."""
    _cache().remove(name)


class Segment:
    """A segment that is open for look-ups. Every row that is read is checked."""

    def __init__(
        self, folder: Folder, name: str, report_damage: Callable[[str, str], None], is_torn: bool = False
    ) -> None:
        """Open a segment without reading its rows.

        Args:
            report_damage: called with the segment's name and a reason for every damaged row that is read.

            is_torn: whether the file may have lost its end, from some byte of its batch on. The rows that are there
                can be read; all others are damaged.

        Raises:
            FileNotFoundError: the segment was deleted.
            DamagedError: the file is not a whole segment, or its beginning is damaged.
        """
        import pyarrow as pa

        self.name = name
        self._report_damage = report_damage
        with _open(folder, name) as source:  # The batch keeps the memory map; the file need not stay open.
            self.num_bytes: int = source.size()
            try:
                batch = _read_torn(source.read_buffer()) if is_torn else _read_whole(source)
                if not batch.num_rows:
                    raise DamagedError("no rows")
                self.num_rows: int = batch.num_rows
                self._high, self._low, self._checksums = (batch.column(column).to_numpy() for column in range(3))
                _, offsets, data = batch.column(3).buffers()
                self._starts = np.frombuffer(offsets, np.int64, self.num_rows + 1)
                self._data = memoryview(data)
            except (pa.ArrowException, OSError, ValueError, TypeError) as error:
                raise DamagedError(str(error).splitlines()[0]) from None

    def find(self, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the keys that occur, and the row of each; a key may occur in several rows.

        Args:
            halves: ``(n, 2)`` uint64, as :func:`key_columns` returns them.
        """
        high, low = halves[:, 0], halves[:, 1]
        first = np.searchsorted(self._high, high)
        hits = np.flatnonzero(self._high[np.minimum(first, self.num_rows - 1)] == high)
        first = first[hits]
        num_rows = np.searchsorted(self._high, high[hits], side="right") - first
        num_rows = np.maximum(num_rows, 0)  # A damaged key can put the end before the beginning.
        indices = np.repeat(hits, num_rows)
        within = np.arange(len(indices)) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
        rows = np.repeat(first, num_rows) + within
        is_same = self._low[rows] == low[indices]
        return indices[is_same], rows[is_same]

    def values(self, rows: np.ndarray, keys: Collection[bytes]) -> Iterator[bytes | None]:
        """Yield the value of each row, None if the row under its key is damaged."""
        starts, ends = self._starts[rows].tolist(), self._starts[rows + 1].tolist()
        for key, start, end, checksum in zip(keys, starts, ends, self._checksums[rows].tolist(), strict=True):
            value = bytes(self._data[start:end])
            if zlib.crc32(value, zlib.crc32(key)) == checksum:
                yield value
            else:
                self._report_damage(self.name, "the checksum of a row is wrong")
                yield None

    def rows(self) -> Iterator[bytes]:
        """Yield all undamaged rows in the order of the file."""
        for start in range(0, self.num_rows, ROWS_PER_READ):
            rows = np.arange(start, min(start + ROWS_PER_READ, self.num_rows))
            halves = np.stack([self._high[rows], self._low[rows]], axis=1).astype(">u8").tobytes()
            keys = [halves[offset : offset + KEY_BYTES] for offset in range(0, len(halves), KEY_BYTES)]
            for key, value in zip(keys, self.values(rows, keys), strict=True):
                if value is not None:
                    yield key + value


def _open(folder: Folder, name: str) -> Any:
    """Return a segment's bytes as a memory map, of its cached copy if the folder is remote."""
    import pyarrow as pa

    local = folder.local
    if local is None:
        cache = _cache()
        if not cache.exists(name):
            content = folder.read_bytes(name)
            if segment_name(content) != name:
                return pa.BufferReader(content)  # It is damaged, so it is not kept.
            cache.write_bytes(name, content)
        local = Path(cache.uri)
    return pa.memory_map(str(local / name))


def segments_to_merge(segments: Sequence[Segment]) -> list[Segment]:
    """Return segments of about one size if there are enough of them to merge.

    Merging only among equals keeps the number of times that a row is rewritten logarithmic.
    """
    by_size = sorted(segments, key=lambda segment: segment.num_bytes)
    for _, tier in groupby(by_size, key=lambda segment: int(math.log(segment.num_bytes, MERGE_AT))):
        candidates = list(tier)
        if len(candidates) >= MERGE_AT and len(chosen := first_that_fit(candidates, COMMIT_BYTES)) > 1:
            return chosen
    return []


def first_that_fit(segments: Sequence[Segment], limit: int = SEGMENT_BYTES) -> list[Segment]:
    """Return as many of the first segments as fit into one of ``limit`` bytes."""
    num_bytes = 0
    for index, segment in enumerate(segments):
        num_bytes += segment.num_bytes
        if num_bytes > limit:
            return list(segments[:index])
    return list(segments)
