"""Keep a run's prompts in one Parquet file, from which workers read the prompts of a block by their positions.

No process holds more prompts in memory than it works on, however many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from xgray.rows import Prompt
from xgray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


PROMPTS = "prompts.parquet"
ROW_GROUP = 1024
"""Prompts that are read and written together."""
FINGERPRINT = b"fingerprint"


def encode_prompts(prompts: Iterable[Prompt], fingerprint: str) -> pa.Buffer:
    """Return the content of a file with these prompts, in order.

    Args:
        fingerprint: The fingerprint of the files that the prompts come from.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [(name, pa.string()) for name in ("prompt_id", "language", "text")]
    schema = pa.schema(columns, {FINGERPRINT: fingerprint.encode()})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for rows in _groups(prompts):
            table = pa.table({name: [getattr(row, name) for row in rows] for name, _ in columns}, schema)
            writer.write_table(table, row_group_size=ROW_GROUP)
    return sink.getvalue()


def _groups(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    rows: list[Prompt] = []
    for prompt in prompts:
        rows.append(prompt)
        if len(rows) == ROW_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


class PromptFile:
    """The prompts of a run. Their file is opened at first use and stays open; an unpickled copy opens it again.

    Several threads may call :meth:`read`. They take turns, because pyarrow's reader does not allow it otherwise: it
    misses parts of the file, or crashes.
    """

    def __init__(self, run: Folder) -> None:
        self._run = run
        self._file: pq.ParquetFile | None = None
        self._group: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[PromptFile], tuple[Folder]]:
        return PromptFile, (self._run,)

    @property
    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = self._run.open_parquet(PROMPTS)
        return self._file

    @property
    def fingerprint(self) -> str:
        return (self._open.schema_arrow.metadata or {}).get(FINGERPRINT, b"").decode()

    def __len__(self) -> int:
        num_rows: int = self._open.metadata.num_rows
        return num_rows

    def ids(self) -> Iterator[str]:
        """Yield all prompts' ids, in order."""
        for batch in self._open.iter_batches(ROW_GROUP, columns=["prompt_id"]):
            yield from batch["prompt_id"].to_pylist()

    def read(self, start: int, stop: int) -> list[Prompt]:
        """Return the prompts at the positions from ``start`` to before ``stop``."""
        rows: list[Prompt] = []
        while start < stop:
            group, offset = divmod(start, ROW_GROUP)
            part = self._read_group(group).slice(offset, stop - start)
            rows += [Prompt(**row) for row in part.to_pylist()]
            start += part.num_rows
        return rows

    def _read_group(self, group: int) -> pa.Table:
        with self._lock:
            if self._group is None or self._group[0] != group:
                self._group = group, self._open.read_row_group(group)
            return self._group[1]
