"""The files of a score store: immutable, sorted by key, searched without being read.

A row is a key of 16 bytes and a value. A segment is an Arrow IPC file with one uncompressed record batch: the key in
two columns of 64-bit integers, which a binary search touches in a few places, a CRC-32 of each row, and the values.
The file is named by the SHA-256 of its content. A local one is memory-mapped; a remote one is copied once into the
cache, where it never goes stale.
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
"""Segments of one size that a writer has written before it merges them into one."""
SEGMENT_BYTES = 2**28
"""No merge makes a larger segment. It is about a million rows of short texts; a merge holds them in memory."""


def segment_name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:NAME_DIGITS] + SUFFIX


def key_columns(keys: Collection[bytes]) -> np.ndarray:
    """``(n, 2)`` uint64: the high and the low half of each key; their order is that of the bytes."""
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

    names = (("key_high", pa.uint64()), ("key_low", pa.uint64()), ("checksum", pa.uint32()))
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in (*names, ("value", pa.large_binary()))],
    )


def _cache() -> Folder:
    return Folder(str(cache_folder() / "scores-cache"))


def forget_cached(name: str) -> None:
    """Delete the cached copy of a remote segment that is no more."""
    _cache().remove(name)


class Segment:
    """One segment, open for look-ups. What is read from it is checked row by row."""

    def __init__(self, folder: Folder, name: str, damaged: Callable[[str, str], None]) -> None:
        """Open a segment without reading its rows.

        Args:
            damaged: called with the segment's name and a reason at every damaged row that is met.

        Raises:
            FileNotFoundError: there is no such segment any more.
            DamagedError: the file is no whole segment.
        """
        import pyarrow as pa

        self.name = name
        self._report = damaged
        with _source(folder, name) as source:  # The batch keeps the mapping; the file need not stay open.
            self.num_bytes: int = source.size()
            try:
                reader = pa.ipc.open_file(source)
                if reader.schema != _schema() or reader.num_record_batches != 1:
                    raise DamagedError("not the columns of a segment")
                batch = reader.get_batch(0)
                batch.validate()
                if not batch.num_rows:
                    raise DamagedError("no rows")
                self.num_rows: int = batch.num_rows
                self._high, self._low, self._checksums = (batch.column(at).to_numpy() for at in range(3))
                _, offsets, data = batch.column(3).buffers()
                self._starts = np.frombuffer(offsets, np.int64, self.num_rows + 1)
                self._data = memoryview(data)
            except (pa.ArrowException, OSError, ValueError, TypeError) as error:
                raise DamagedError(str(error).splitlines()[0]) from None

    def find(self, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where keys are: the indices of those found, and the row of each; a key may be found in several rows.

        Args:
            halves: ``(n, 2)`` uint64, as :func:`key_columns` gives them.
        """
        high, low = halves[:, 0], halves[:, 1]
        first = np.searchsorted(self._high, high)
        hits = np.flatnonzero(self._high[np.minimum(first, self.num_rows - 1)] == high)
        first = first[hits]
        num = np.searchsorted(self._high, high[hits], side="right") - first
        # A damaged key can put the end before the beginning.
        num = np.maximum(num, 0)
        indices = np.repeat(hits, num)
        within = np.arange(len(indices)) - np.repeat(np.cumsum(num) - num, num)
        rows = np.repeat(first, num) + within
        same = self._low[rows] == low[indices]
        return indices[same], rows[same]

    def values(self, rows: np.ndarray, keys: Collection[bytes]) -> Iterator[bytes | None]:
        """The value of each row under the key that found it; None for a row that is damaged."""
        starts, ends = self._starts[rows].tolist(), self._starts[rows + 1].tolist()
        for key, start, end, checksum in zip(keys, starts, ends, self._checksums[rows].tolist(), strict=True):
            value = bytes(self._data[start:end])
            if zlib.crc32(value, zlib.crc32(key)) == checksum:
                yield value
            else:
                self._report(self.name, "the checksum of a row is wrong")
                yield None

    def rows(self) -> Iterator[bytes]:
        """All rows that are sound, in the order of the file."""
        step = 4096
        for start in range(0, self.num_rows, step):
            rows = np.arange(start, min(start + step, self.num_rows))
            halves = np.stack([self._high[rows], self._low[rows]], axis=1).astype(">u8").tobytes()
            keys = [halves[at : at + KEY_BYTES] for at in range(0, len(halves), KEY_BYTES)]
            for key, value in zip(keys, self.values(rows, keys), strict=True):
                if value is not None:
                    yield key + value


def _source(folder: Folder, name: str) -> Any:
    """The bytes of a segment, memory-mapped; a remote one's copy is."""
    import pyarrow as pa

    local = folder.local
    if local is None:
        cache = _cache()
        if not cache.exists(name):
            content = folder.read_bytes(name)
            if segment_name(content) != name:
                return pa.BufferReader(content)  # Damaged, so not to be kept.
            cache.write_bytes(name, content)
        local = Path(cache.uri)
    return pa.memory_map(str(local / name))


def full_tier(segments: Sequence[Segment]) -> list[Segment]:
    """Parts to merge: segments of about one size, where there are enough of them; so no row is merged often."""
    by_size = sorted(segments, key=lambda one: one.num_bytes)
    for _, tier in groupby(by_size, key=lambda one: int(math.log(one.num_bytes, MERGE_AT))):
        parts = list(tier)
        if len(parts) >= MERGE_AT and len(chosen := fitting(parts)) > 1:
            return chosen
    return []


def fitting(segments: Sequence[Segment]) -> list[Segment]:
    """As many of the first segments as one may hold."""
    num_bytes = 0
    for at, segment in enumerate(segments):
        num_bytes += segment.num_bytes
        if num_bytes > SEGMENT_BYTES:
            return list(segments[:at])
    return list(segments)
